"""The training loss of all decoder layers."""

from collections.abc import Callable

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from dab_detr.modeling.boxes import generalized_iou
from dab_detr.modeling.structures import Matches, Outputs, Targets


class SetCriterion(nn.Module):
    """Focal loss on the classes, L1 and GIoU loss on the matched boxes, the same for every layer.

    Each is summed and divided by the mean number of objects over all processes, at least 1.

    Args:
        matcher: matches predictions with objects.
        class_weight, bbox_weight, giou_weight: weights of the three losses.
        focal_alpha: weight of positives in the focal loss, 0..1; negatives have 1 - focal_alpha.
        focal_gamma: exponent of the focal loss, which reduces the weight of easy predictions.
        class_target: target score of a matched prediction for its object's class: takes predicted
            and ground truth boxes, cxcywh ``(P, 4)``, and returns ``(P,)`` in 0..1, such as their
            IoU. None: 1. In a config a LazyCall of a class, so that ``config.yaml`` can name it.

    Raises:
        ValueError: if ``focal_alpha`` is not in 0..1.
    """

    def __init__(
        self,
        matcher: nn.Module,
        class_weight: float = 1.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        class_target: Callable[[Tensor, Tensor], Tensor] | None = None,
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
        self.class_target = class_target

    def forward(
        self, outputs: Outputs, targets: Targets, num_boxes: float | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses, ready to be summed.

        Args:
            outputs: predictions of all layers; each entry of ``extra`` is matched separately.
            targets: ground truth of the B images; an image may have no objects.
            num_boxes: divisor of the losses (at least 1 is used); None: the mean number of objects
                over all processes.

        Returns:
            The losses of :meth:`losses`, and the same with the suffix ``_<name>`` for each entry
            of ``outputs.extra``.
        """
        if num_boxes is None:
            num_boxes = _mean_over_processes(len(targets.labels), outputs.class_logits.device)
        found = {}
        for name, predicted in {"": outputs, **(outputs.extra or {})}.items():
            matches = self.match(predicted, targets)
            losses = self.losses(predicted, matches, targets, num_boxes)
            suffix = f"_{name}" if name else ""
            found |= {f"{key}{suffix}": loss for key, loss in losses.items()}
        return found

    @torch.no_grad()
    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """Match predictions with objects, in each layer and group of queries.

        Args:
            outputs: predictions; ``outputs.extra`` is ignored. Matches that are already known
                (``outputs.matches``) are returned.
            targets: ground truth of the B images.
        """
        if outputs.matches is not None:
            return outputs.matches
        class_logits, boxes_cxcywh = outputs.class_logits.float(), _boxes(outputs)
        groups = outputs.num_groups
        if groups == 1:
            return self.matcher(class_logits, boxes_cxcywh, targets)
        # the matcher treats each group of a layer as a layer of its own
        by_group = (
            x.unflatten(2, (groups, -1)).movedim(2, 1).flatten(0, 1)
            for x in (class_logits, boxes_cxcywh)
        )
        found = self.matcher(*by_group, targets)
        size = class_logits.shape[2] // groups
        query = found.query + found.layer % groups * size
        return Matches(found.layer // groups, found.image, query, found.target)

    def losses(
        self,
        outputs: Outputs,
        matches: Matches,
        targets: Targets,
        num_boxes: float | Tensor,
    ) -> dict[str, Tensor]:
        """Weighted losses of matched pairs; an object may be in any number of pairs.

        Args:
            outputs: predictions; ``outputs.extra`` is ignored.
            matches: from :meth:`match`, or known otherwise.
            targets: ground truth of the B images.
            num_boxes: divisor of the losses, at least 1 is used; it is multiplied by the number of
                groups.

        Returns:
            ``loss_class``, ``loss_bbox``, ``loss_giou`` of the last layer, and the same names with
            ``_0`` .. ``_{L-2}`` of the earlier layers.
        """
        boxes_cxcywh = _boxes(outputs)
        predicted = boxes_cxcywh[matches.layer, matches.image, matches.query]
        wanted = targets.boxes_cxcywh[matches.target]
        by_term = {
            "loss_class": self._class_loss(
                outputs.class_logits.float(), matches, targets, predicted, wanted
            ),
            **self._box_losses(predicted, wanted, matches, len(boxes_cxcywh)),
        }
        divisor = torch.as_tensor(num_boxes).clamp(min=1) * outputs.num_groups
        last = len(boxes_cxcywh) - 1
        return {
            name if layer == last else f"{name}_{layer}": self.weights[name] * loss / divisor
            for name, by_layer in by_term.items()
            for layer, loss in enumerate(by_layer)
        }

    def _class_loss(
        self,
        class_logits: Tensor,
        matches: Matches,
        targets: Targets,
        predicted: Tensor,
        wanted: Tensor,
    ) -> Tensor:
        """Focal loss (Lin et al., 2017, equation 5) over images, queries and classes: ``(L,)``.

        Needs no dense tensor of labels: as nearly all logits are negatives, the loss is computed
        for negatives everywhere and then replaced where a prediction is matched.
        """
        label = targets.labels[matches.target]
        matched = (matches.layer, matches.image, matches.query, label)
        # not softplus, which is 0 at -inf: a non-finite prediction must give a non-finite loss
        cross_entropy = class_logits - F.logsigmoid(class_logits)
        prob = class_logits.sigmoid()
        loss = (1 - self.focal_alpha) * prob**self.focal_gamma * cross_entropy
        logits = class_logits[matched]
        if self.class_target is None:
            loss[matched] = (
                -self.focal_alpha * (-logits).sigmoid() ** self.focal_gamma * F.logsigmoid(logits)
            )
        else:
            score = self.class_target(predicted.detach(), wanted)
            distance = (score - logits.sigmoid()).abs()
            entropy = F.binary_cross_entropy_with_logits(logits, score, reduction="none")
            loss[matched] = self.focal_alpha * distance**self.focal_gamma * entropy
        return loss.flatten(1).sum(1)

    def _box_losses(
        self, predicted: Tensor, wanted: Tensor, matches: Matches, num_layers: int
    ) -> dict[str, Tensor]:
        """L1 and GIoU loss summed over matched pairs: each ``(L,)``."""
        distance = (predicted - wanted).abs().sum(-1)
        overlap = generalized_iou(
            box_convert(predicted, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
        )
        zeros = predicted.new_zeros(num_layers)
        return {
            "loss_bbox": zeros.index_add(0, matches.layer, distance),
            "loss_giou": zeros.index_add(0, matches.layer, 1 - overlap),
        }


def _boxes(outputs: Outputs) -> Tensor:
    """cxcywh in 0..1, float32 ``(L, B, Q, 4)``."""
    return outputs.box_logits.float().sigmoid()


def _mean_over_processes(count: int, device: torch.device) -> Tensor:
    """The mean of ``count`` over all processes, a float32 scalar."""
    mean = torch.tensor(float(count), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    return mean
