"""Arithmetic on boxes that torchvision does not have: bounded logits and paired GIoU."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bounded_logits(logits: Tensor, eps: float = 1e-3) -> Tensor:
    """``log(max(x, eps) / max(1 - x, eps))`` of ``x = sigmoid(logits)``, without computing x.

    An anchor close to the image border is pulled back to about +-6.9, as in the published code, so
    that the box head can still move it. With this ``eps`` all released weights were trained.

    Args:
        logits: any shape; taken to float32.
        eps: the least distance to 0 and 1 that counts.

    Returns:
        float32, the same shape, within ``+-log(1 / eps)``.
    """
    logits = logits.float()
    floor = math.log(eps)
    return F.logsigmoid(logits).clamp(min=floor) - F.logsigmoid(-logits).clamp(min=floor)


def generalized_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Generalized IoU of corresponding boxes, with broadcasting (Rezatofighi et al., 2019).

    torchvision's functions take all pairs of two lists, or add 1e-7 to every area, which is not
    small against a box of a few pixels in 0..1 coordinates.

    Args:
        boxes1_xyxy, boxes2_xyxy: float ``(..., 4)``, broadcastable, ``x0 <= x1`` and ``y0 <= y1``.

    Returns:
        ``(...)`` in -1..1; two empty boxes at one place count as 0, never NaN.
    """
    tiny = torch.finfo(boxes1_xyxy.dtype).tiny
    top_left1, bottom_right1 = boxes1_xyxy.split(2, dim=-1)
    top_left2, bottom_right2 = boxes2_xyxy.split(2, dim=-1)
    area1 = (bottom_right1 - top_left1).prod(-1)
    area2 = (bottom_right2 - top_left2).prod(-1)
    overlap = torch.min(bottom_right1, bottom_right2) - torch.max(top_left1, top_left2)
    intersection = overlap.clamp(min=0).prod(-1)
    union = area1 + area2 - intersection
    hull = (torch.max(bottom_right1, bottom_right2) - torch.min(top_left1, top_left2)).prod(-1)
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
