"""The model on tensors only: pixels and padding mask in, class and box logits out."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from dab_detr.modeling.structures import Outputs, Targets
from dab_detr.modeling.transformer import DABTransformer


class Core(nn.Module):
    """Backbone, projection and transformer, for analysis, inference copies, benchmarks and export.

    Args:
        backbone: maps ``(B, C, H, W)`` to feature maps by name.
        in_feature: name of the feature map to use.
        input_proj: the 1x1 convolution to the transformer's width.
        transformer: see :class:`DABTransformer`.
    """

    def __init__(
        self, backbone: nn.Module, in_feature: str, input_proj: nn.Module, transformer: nn.Module
    ):
        super().__init__()
        self.backbone = backbone
        self.in_feature = in_feature
        self.input_proj = input_proj
        self.transformer: DABTransformer = transformer

    def forward(self, pixels: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict with the last decoder layer.

        Args:
            pixels: normalised, ``(B, C, H, W)``, zero in the padding.
            padding_mask: bool ``(B, H, W)``, True where a pixel is padding; None: nowhere.

        Returns:
            class_logits ``(B, Q, K)`` and box_logits ``(B, Q, 4)``, whose sigmoid is cxcywh.
        """
        outputs = self.outputs(pixels, padding_mask, all_layers=False)
        return outputs.class_logits[-1], outputs.box_logits[-1]

    def outputs(
        self,
        pixels: Tensor,
        padding_mask: Tensor | None = None,
        *,
        all_layers: bool,
        targets: Targets | None = None,
    ) -> Outputs:
        """Predict for training: from all layers, with the extra predictions of the queries.

        Args:
            pixels, padding_mask: as above. all_layers, targets: see :class:`DABTransformer`.
        """
        features, padding_mask = self._features(pixels, padding_mask)
        return self.transformer(features, padding_mask, all_layers=all_layers, targets=targets)

    def layers(
        self, pixels: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor | None, Outputs]:
        """Predict from all layers, to show how boxes develop; for the evaluation mode.

        Args:
            pixels, padding_mask: as above.

        Returns:
            The anchors that the first layer starts from, see :meth:`QueryFormulation.anchors`, and
            the predictions of all layers, of which the last are those of :meth:`forward`.
        """
        memory = self.transformer.encode(*self._features(pixels, padding_mask))
        queries = self.transformer.queries
        anchors = queries.anchors(queries(memory).state)
        return anchors, self.transformer.decoder(queries, memory)

    def _features(
        self, pixels: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Projected feature map ``(B, D, h, w)``, and its padding mask ``(B, h, w)``."""
        features: Mapping[str, Tensor] = self.backbone(pixels)
        level = features[self.in_feature]
        if padding_mask is not None:
            padding_mask = shrink_mask(padding_mask, level.shape[-2:])
        return self.input_proj(level), padding_mask


def shrink_mask(padding_mask: Tensor, size: torch.Size) -> Tensor:
    """Resize a mask of pixels to cells, by nearest neighbour as in the published code.

    Args:
        padding_mask: bool ``(B, H, W)``. size: (h, w) of the feature map.

    Returns:
        bool ``(B, h, w)``.
    """
    rows, columns = (
        # The pixel of each cell. In integers, because runtimes of exported files round the scale
        # in other ways, and would be one pixel off for many sizes.
        torch.arange(cells, device=padding_mask.device) * pixels // cells
        for pixels, cells in zip(padding_mask.shape[-2:], size)
    )
    return padding_mask[:, rows][:, :, columns]


class Detections(NamedTuple):
    """The highest-scoring (query, class) pairs of each image, best first.

    Attributes:
        scores: ``(B, n)`` in 0..1. labels: int64 ``(B, n)`` in 0..K-1.
        boxes_xyxy: float32 ``(B, n, 4)``, relative to each image without its padding; may extend
            beyond 0..1.
    """

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor


def select_detections(class_logits: Tensor, box_logits: Tensor, num_select: int) -> Detections:
    """Select the highest-scoring (query, class) pairs of each image, without NMS or threshold.

    Args:
        class_logits: ``(B, Q, K)``. box_logits: ``(B, Q, 4)``, whose sigmoid is cxcywh.
        num_select: how many pairs to keep, at most Q * K.
    """
    scores, queries, labels = select_pairs(class_logits, num_select)
    boxes_xyxy = box_convert(box_logits.float().sigmoid(), "cxcywh", "xyxy")
    boxes_xyxy = boxes_xyxy.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
    return Detections(scores, labels, boxes_xyxy)


def select_pairs(class_logits: Tensor, num_select: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the pairs of :func:`select_detections`.

    Returns:
        scores ``(B, n)`` in 0..1, best first, and the index of each pair's query and label, int64
        ``(B, n)``.
    """
    num_classes = class_logits.shape[-1]
    scores = class_logits.float().sigmoid().flatten(1)
    scores, pairs = scores.topk(min(num_select, scores.shape[1]), dim=1)
    return scores, pairs // num_classes, pairs % num_classes
