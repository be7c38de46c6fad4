"""Matching and losses as DETR implementations compute them, for comparison.

For each decoder layer: the costs of every query of the batch with every object of the batch, a copy
to the host, an assignment per image, then each loss with dense labels.
"""

import torch
from fvcore.nn import sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from dab_detr.modeling import Outputs, Targets

_ALPHA, _GAMMA = 0.25, 2.0


@torch.no_grad()
def match_layer(class_logits: Tensor, boxes: Tensor, targets: Targets) -> list[tuple]:
    """Match one layer with the paper's weights 2, 5, 2.

    Args:
        class_logits: ``(B, Q, K)``. boxes: ``(B, Q, 4)``, cxcywh in 0..1.

    Returns:
        (queries, objects) of each image, int64, objects counted from the image's first.
    """
    batch, queries = class_logits.shape[:2]
    prob = class_logits.flatten(0, 1).sigmoid()
    flat = boxes.flatten(0, 1)
    negative = (1 - _ALPHA) * prob**_GAMMA * -(1 - prob + 1e-8).log()
    positive = _ALPHA * (1 - prob) ** _GAMMA * -(prob + 1e-8).log()
    class_cost = positive[:, targets.labels] - negative[:, targets.labels]
    distance = torch.cdist(flat, targets.boxes_cxcywh, p=1)
    overlap = generalized_box_iou(
        box_convert(flat, "cxcywh", "xyxy"), box_convert(targets.boxes_cxcywh, "cxcywh", "xyxy")
    )
    costs = (2 * class_cost + 5 * distance - 2 * overlap).view(batch, queries, -1).cpu()
    assigned = [
        linear_sum_assignment(of_image[index])
        for index, of_image in enumerate(costs.split(list(targets.counts), dim=-1))
    ]
    return [tuple(torch.as_tensor(x) for x in pair) for pair in assigned]


def criterion(outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
    """The losses of :class:`dab_detr.modeling.criterion.SetCriterion`, with the same names."""
    divisor = max(1, len(targets.labels))
    last = len(outputs.class_logits) - 1
    losses = {}
    by_layer = zip(outputs.class_logits, outputs.box_logits.sigmoid())
    for layer, (logits, boxes) in enumerate(by_layer):
        matches = match_layer(logits, boxes, targets)
        image = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(matches)])
        query = torch.cat([queries for queries, _ in matches])
        labels = targets.labels.split(list(targets.counts))
        wanted_boxes = targets.boxes_cxcywh.split(list(targets.counts))
        label = torch.cat([x[objects] for x, (_, objects) in zip(labels, matches)])
        wanted = torch.cat([x[objects] for x, (_, objects) in zip(wanted_boxes, matches)])
        dense = torch.zeros_like(logits)
        dense[image, query, label] = 1
        focal = sigmoid_focal_loss(logits, dense, _ALPHA, _GAMMA, reduction="sum")
        found = boxes[image, query]
        overlap = generalized_box_iou(
            box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
        )
        suffix = "" if layer == last else f"_{layer}"
        losses[f"loss_class{suffix}"] = focal / divisor
        losses[f"loss_bbox{suffix}"] = 5 * (found - wanted).abs().sum() / divisor
        losses[f"loss_giou{suffix}"] = 2 * (1 - overlap.diagonal()).sum() / divisor
    return losses
