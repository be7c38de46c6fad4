"""Any timm model as a Detectron2 backbone."""

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor


class TimmBackbone(Backbone):
    """The feature levels of a timm model, named ``p<log2(stride)>``, e.g. ``p5`` at stride 32.

    Args:
        name: of the model, see ``timm.list_models()``.
        pretrained: download timm's weights for it.
        out_indices: of timm's levels; None: the last one.
        **kwargs: to ``timm.create_model``.

    Raises:
        ImportError: without timm, an extra of this package.
        ValueError: if timm has no such model, or it gives no feature maps; the message names near
            misses.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        out_indices: tuple[int, ...] | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError("TimmBackbone needs timm: pip install 'dab_detr[timm]'.") from error
        if not timm.is_model(name):
            # timm's names begin with the family
            close = timm.list_models(f"{name[:6]}*")[:5]
            hint = f"; there are {', '.join(close)}, ..." if close else ""
            raise ValueError(f"timm has no model {name!r}{hint}.")
        try:
            self.body = timm.create_model(
                name,
                pretrained=pretrained,
                features_only=True,
                out_indices=(-1,) if out_indices is None else tuple(out_indices),
                **kwargs,
            )
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"timm's {name!r} gives no feature maps: {error}") from error
        info = self.body.feature_info
        self._levels = {
            f"p{stride.bit_length() - 1}": ShapeSpec(channels=channels, stride=stride)
            for channels, stride in zip(info.channels(), info.reduction())
        }
        # some of timm's transformers keep channels last
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, 3, H, W)`` to feature maps ``(B, C, H / stride, W / stride)`` by level."""
        features = self.body(images)
        if self._channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return dict(zip(self._levels, features))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._levels
