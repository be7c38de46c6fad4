"""Any timm model as a Detectron2 backbone."""

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from dab_detr.errors import InputError, one_line

# options for images of any size by timm's families; others need none, or do not accept them
_ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class TimmBackbone(Backbone):
    """The feature levels of a timm model, named ``p<log2(stride)>``, e.g. ``p5`` at stride 32.

    Levels of equal stride, such as all blocks of a ViT, have timm's index of the level in their
    name, too: ``p4_7``. ``size_divisibility``, the multiple to which images have to be padded, is
    found by trying.

    Args:
        name: name of the model, see ``timm.list_models()``.
        pretrained: download timm's weights for it.
        out_indices: indices of timm's levels, negative ones count from the end; None: the last one.
        **kwargs: arguments of ``timm.create_model``.

    Raises:
        ImportError: without timm, an optional dependency of this package.
        ValueError: if timm has no such model (the message names similar ones), or the model has no
            feature maps or does not accept images of every size.
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
        self._name = name
        indices = (-1,) if out_indices is None else tuple(out_indices)
        self.body = _create(name, pretrained=pretrained, out_indices=indices, **kwargs)
        # some of timm's transformers return channels last
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self._levels = _levels(self.body.feature_info, indices, name)
        strides = [level["reduction"] for level in self.body.feature_info.info]
        self._divisibility = self._find_divisibility(strides)

    @property
    def size_divisibility(self) -> int:
        return self._divisibility

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, 3, H, W)`` to feature maps ``(B, C, H / stride, W / stride)`` by level.

        Raises:
            InputError: if timm's model refuses images of this size.
        """
        try:
            return self._features(images)
        except (AssertionError, IndexError) as error:
            size = " x ".join(map(str, images.shape[-2:]))
            raise InputError(
                f"timm's {self._name!r} does not accept images of {size} pixels ({error}); choose "
                "another model, or smaller images."
            ) from error

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        if self._channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return dict(zip(self._levels, features))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._levels

    def _find_divisibility(self, strides: list[int]) -> int:
        """The smallest divisor of image sizes that works: 0 (any size) or one of the strides."""
        stride = max(strides)
        problem = None
        for divisor in (0, *sorted(set(strides))):
            step = max(divisor, 1)
            height, width = (-(-(cells * stride + 1) // step) * step for cells in (3, 4))
            problem = self._problem_with(height, width)
            if problem is None:
                return divisor
        raise ValueError(
            f"timm's {self._name!r} does not accept images of every size, as detection needs "
            f"({problem}): choose another model."
        )

    @torch.no_grad()
    def _problem_with(self, height: int, width: int) -> str | None:
        """What is wrong with the feature maps of an image of this size; None: nothing."""
        training, parameter = self.training, next(self.parameters())
        image = torch.zeros(1, 3, height, width).to(parameter)
        try:
            features = self.eval()._features(image)
        # timm's models fail in many ways at sizes that they do not accept
        except (AssertionError, RuntimeError, ValueError, IndexError) as error:
            return one_line(error, with_type=False)
        finally:
            self.train(training)
        for level, spec in self._levels.items():
            shape = features[level].shape
            cells = [pixels / spec.stride for pixels in (height, width)]
            if shape[1] != spec.channels or any(
                abs(found - wanted) >= 1 for found, wanted in zip(shape[2:], cells)
            ):
                return f"level {level} is {tuple(shape[1:])}, of stride {spec.stride}"
        return None


def _create(name: str, **kwargs: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError("TimmBackbone needs timm: pip install 'dab_detr[timm]'.") from error
    if not timm.is_model(name):
        # timm's names start with the family
        close = timm.list_models(f"{name[:6]}*")[:5]
        hint = f"; there are {', '.join(close)}, ..." if close else ""
        raise ValueError(f"timm has no model {name!r}{hint}.")
    for options in _ANY_SIZE:
        try:
            return timm.create_model(name, features_only=True, **{**options, **kwargs})
        except TypeError as error:
            # the family does not have the option
            if not options or not any(option in str(error) for option in options):
                raise ValueError(f"timm cannot build {name!r}: {error}.") from error
        except (RuntimeError, AttributeError, NotImplementedError, AssertionError) as error:
            raise ValueError(
                f"timm's {name!r} does not return such feature maps: {error}"
            ) from error
    raise AssertionError("the last options are none")


def _levels(info: Any, indices: tuple[int, ...], model: str) -> dict[str, ShapeSpec]:
    """The levels by name, in the order of timm's outputs, from the first block on."""
    count = len(info.info)
    levels = sorted(zip((i % count for i in indices), info.channels(), info.reduction()))
    strides = [stride for _, _, stride in levels]
    result = {}
    for index, channels, stride in levels:
        name = f"p{stride.bit_length() - 1}"
        if strides.count(stride) > 1:
            name = f"{name}_{index}"
        result[name] = ShapeSpec(channels=channels, stride=stride)
    if len(result) < len(levels):
        raise ValueError(f"out_indices {indices} name a level of timm's {model!r} twice.")
    return result
