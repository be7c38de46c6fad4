"""The training loss of all decoder layers at once."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from dab_detr.modeling.boxes import generalized_iou
from dab_detr.modeling.matcher import Matches, Targets


class SetCriterion(nn.Module):
    """Focal loss on the classes, L1 and GIoU loss on the matched boxes, the same for every layer.

    Each is summed and divided by the mean over workers of the number of objects, at least 1.

    Args:
        matcher: gives the pairs of predictions and objects.
        class_weight, bbox_weight, giou_weight: of the three terms in the total.
        focal_alpha: weight of objects in the focal loss, 0..1; everything else has the rest.
        focal_gamma: its focus.

    Raises:
        ValueError: for a ``focal_alpha`` that is not a share.
    """

    def __init__(
        self,
        matcher: nn.Module,
        class_weight: float = 1.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ):
        super().__init__()
        if not 0 <= focal_alpha <= 1:
            raise ValueError(f"focal_alpha is {focal_alpha}; it has to be from 0 to 1.")
        self.matcher = matcher
        self.weights = {
            "loss_class": class_weight,
            "loss_bbox": bbox_weight,
            "loss_giou": giou_weight,
        }
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    def forward(
        self,
        class_logits: Tensor,
        box_logits: Tensor,
        targets: Targets,
        num_boxes: float | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses, ready to be summed.

        Args:
            class_logits: ``(L, B, Q, K)``. box_logits: ``(L, B, Q, 4)``.
            targets: of the B images, any number of objects, none included.
            num_boxes: what the losses are divided by (but at least by 1); None: the number of
                objects, as a mean over all workers.

        Returns:
            ``loss_class``, ``loss_bbox``, ``loss_giou`` of the last layer, and the same names with
            ``_0`` .. ``_{L-2}`` of the layers before it.
        """
        class_logits = class_logits.float()
        boxes_cxcywh = box_logits.float().sigmoid()
        matches = self.matcher(class_logits, boxes_cxcywh, targets)
        if num_boxes is None:
            num_boxes = _mean_over_workers(len(targets.labels), class_logits.device)
        divisor = torch.as_tensor(num_boxes).clamp(min=1)
        losses = {
            "loss_class": self._class_loss(class_logits, matches, targets),
            **self._box_losses(boxes_cxcywh, matches, targets),
        }
        last = len(class_logits) - 1
        return {
            name if layer == last else f"{name}_{layer}": self.weights[name] * loss / divisor
            for name, by_layer in losses.items()
            for layer, loss in enumerate(by_layer)
        }

    def _class_loss(self, class_logits: Tensor, matches: Matches, targets: Targets) -> Tensor:
        """Focal loss (Lin et al., 2017, equation 5) over images, queries and classes: ``(L,)``.

        Without a dense tensor of labels: nearly all logits belong to no object, so all are taken
        so, and then the matched ones replaced.
        """
        label = targets.labels[matches.target]
        matched = (matches.layer, matches.image, matches.query, label)
        # not softplus, which is 0 at -inf: a prediction that is not finite has to be seen
        cross_entropy = class_logits - F.logsigmoid(class_logits)
        prob = class_logits.sigmoid()
        loss = (1 - self.focal_alpha) * prob**self.focal_gamma * cross_entropy
        logits = class_logits[matched]
        loss[matched] = (
            -self.focal_alpha * (-logits).sigmoid() ** self.focal_gamma * F.logsigmoid(logits)
        )
        return loss.flatten(1).sum(1)

    def _box_losses(
        self, boxes_cxcywh: Tensor, matches: Matches, targets: Targets
    ) -> dict[str, Tensor]:
        """L1 and GIoU loss summed over matched pairs: each ``(L,)``."""
        predicted = boxes_cxcywh[matches.layer, matches.image, matches.query]
        wanted = targets.boxes_cxcywh[matches.target]
        distance = (predicted - wanted).abs().sum(-1)
        overlap = generalized_iou(
            box_convert(predicted, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
        )
        zeros = predicted.new_zeros(len(boxes_cxcywh))
        return {
            "loss_bbox": zeros.index_add(0, matches.layer, distance),
            "loss_giou": zeros.index_add(0, matches.layer, 1 - overlap),
        }


def _mean_over_workers(count: int, device: torch.device) -> Tensor:
    """The mean of ``count`` over all processes, a float32 scalar."""
    mean = torch.tensor(float(count), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean
