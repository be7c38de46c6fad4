"""Bipartite matching for all decoder layers and images, with a single copy to the host."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert

from dab_detr.modeling.boxes import generalized_iou
from dab_detr.modeling.structures import Matches, Targets

# larger than any cost, small enough for exact sums
_WORST = 1e9


class HungarianMatcher(nn.Module):
    """Assign one query to each object of an image, for each decoder layer separately.

    The matching cost is ``class_weight`` times the focal cost, plus ``bbox_weight`` times the L1
    distance of the boxes, minus ``giou_weight`` times their GIoU.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ):
        super().__init__()
        self.class_weight = class_weight
        self.bbox_weight = bbox_weight
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @torch.no_grad()
    def forward(self, class_logits: Tensor, boxes_cxcywh: Tensor, targets: Targets) -> Matches:
        """Find the assignment with the lowest cost for each layer and image.

        Args:
            class_logits: ``(L, B, Q, K)``. boxes_cxcywh: float32 ``(L, B, Q, 4)`` in 0..1.
            targets: ground truth of the B images. An image with more objects than queries gets Q
                pairs.

        A cost that is not finite is replaced by a very large one. The losses of such a prediction
        are not finite either; the trainer checks for that.
        """
        counts = list(targets.counts)
        device = class_logits.device
        image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))
        image = image.to(device, non_blocking=True)
        costs = self._costs(class_logits, boxes_cxcywh, targets, image).cpu().numpy()  # (L, T, Q)
        costs = np.nan_to_num(costs, copy=False, nan=_WORST, posinf=_WORST, neginf=_WORST)
        ends = np.cumsum(counts)
        pairs = []
        for layer, layer_costs in enumerate(costs):
            for index, (count, end) in enumerate(zip(counts, ends)):
                target, query = linear_sum_assignment(layer_costs[end - count : end])
                pairs.append(
                    (
                        np.full_like(query, layer),
                        np.full_like(query, index),
                        query,
                        target + end - count,
                    )
                )
        pairs = np.concatenate([np.stack(pair) for pair in pairs], axis=1)
        return Matches(*torch.from_numpy(pairs).to(device, non_blocking=True))

    def _costs(
        self, class_logits: Tensor, boxes_cxcywh: Tensor, targets: Targets, image: Tensor
    ) -> Tensor:
        """Costs ``(L, T, Q)`` of each object and the queries of its own image."""
        # (T, L, Q): advanced indices separated by a slice put their dimension first
        logits = class_logits.float()[:, image, :, targets.labels]
        prob = logits.sigmoid()
        positive = self.focal_alpha * (1 - prob) ** self.focal_gamma * -(prob + 1e-8).log()
        negative = (1 - self.focal_alpha) * prob**self.focal_gamma * -(1 - prob + 1e-8).log()
        predicted, wanted = boxes_cxcywh.float(), targets.boxes_cxcywh
        distance = _of_pairs(predicted, image) - wanted.T[:, None, :, None]
        overlap = generalized_iou(
            _of_pairs(box_convert(predicted, "cxcywh", "xyxy"), image).movedim(0, -1),
            box_convert(wanted, "cxcywh", "xyxy")[:, None, :],
        )
        return (
            self.class_weight * (positive - negative).transpose(0, 1)
            + self.bbox_weight * distance.abs().sum(0)
            - self.giou_weight * overlap
        )


def _of_pairs(boxes: Tensor, image: Tensor) -> Tensor:
    """``(L, B, Q, 4)`` to ``(4, L, T, Q)``: contiguous coordinates halve the time."""
    return boxes.movedim(-1, 0).contiguous()[:, :, image]
