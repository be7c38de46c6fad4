"""The model as exported files have it: pixels and image sizes in, boxes, scores and labels out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import parametrize

from dab_detr.inference.copy import inference_copy
from dab_detr.modeling.core import select_detections
from dab_detr.modeling.meta_arch import DABDETR

# neither height and width nor batch and a channel may be equal in the example: a trace could take
# one for the other
_EXAMPLE = (2, 96, 128)


class DetectionGraph(nn.Module):
    """Normalisation, padding mask, model and selection of the best detections, on tensors only.

    Args:
        model: is not changed.
        half_weights: keep the weights of linear layers and convolutions in float16. Computation
            stays in float32.
    """

    def __init__(self, model: DABDETR, *, half_weights: bool = False):
        super().__init__()
        constraints = model.backbone.padding_constraints
        if constraints.get("square_size"):
            raise ValueError(
                f"{type(model.backbone).__name__} needs square images of one size; it cannot be "
                "exported for all sizes."
            )
        fast = inference_copy(model)
        self.core = fast.core.eval()
        self.num_select = model.num_select
        self.divisibility = constraints.get("size_divisibility", model.backbone.size_divisibility)
        for name in ("pixel_mean", "pixel_std"):
            self.register_buffer(name, getattr(fast, name).clone(), persistent=False)
        if half_weights:
            for module in list(self.modules()):
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.weight = nn.Parameter(module.weight.half(), requires_grad=False)
                    parametrize.register_parametrization(module, "weight", _Float(), unsafe=True)

    def forward(self, pixels: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect in a batch of images.

        Args:
            pixels: uint8 ``(B, C, H, W)``; the values in the padding do not matter.
            image_sizes: int64 ``(B, 2)``, (height, width) of each image without padding.

        Returns:
            boxes: float32 ``(B, n, 4)`` as xyxy in pixels of each image.
            scores: float32 ``(B, n)`` in 0..1, descending.
            labels: int64 ``(B, n)``.
        """
        if self.divisibility > 1:
            height, width = (-size % self.divisibility for size in pixels.shape[-2:])
            pixels = F.pad(pixels, (0, width, 0, height))
        rows, columns = (
            torch.arange(size, device=pixels.device) >= image_sizes[:, axis, None]
            for axis, size in enumerate(pixels.shape[-2:])
        )  # (B, H) and (B, W)
        padding_mask = rows[:, :, None] | columns[:, None, :]
        normalized = (pixels.float() - self.pixel_mean) / self.pixel_std
        normalized = normalized.masked_fill(padding_mask[:, None], 0.0)
        class_logits, box_logits = self.core(normalized, padding_mask)
        found = select_detections(class_logits, box_logits, self.num_select)
        scale = image_sizes[:, None, [1, 0, 1, 0]].float()  # (B, 1, 4)
        return found.boxes_xyxy * scale, found.scores, found.labels


class _Float(nn.Module):
    """The weight that computes, from the one in float16."""

    def forward(self, half: Tensor) -> Tensor:
        return half.float()


@torch.no_grad()
def trace(graph: DetectionGraph) -> ExportedProgram:
    """Trace the graph for any number and size of images."""
    batch, height, width = _EXAMPLE
    channels = len(graph.pixel_mean)
    pixels = torch.zeros(batch, channels, height, width, dtype=torch.uint8)
    image_sizes = torch.tensor([[height, width - 16], [height - 16, width]])
    shapes = {
        "pixels": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},
        "image_sizes": {0: Dim.AUTO},
    }
    return torch.export.export(graph.cpu(), (pixels, image_sizes), dynamic_shapes=shapes)
