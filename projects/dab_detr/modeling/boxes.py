"""Box operations that torchvision does not have: bounded logits and pairwise matched GIoU."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bounded_logits(logits: Tensor, eps: float = 1e-3) -> Tensor:
    """``log(max(x, eps) / max(1 - x, eps))`` of ``x = sigmoid(logits)``, without computing x.

    The logit of an anchor close to the image border is limited to about +-6.9, as in the published
    code, so that the box head can still move it. All released weights were trained with this
    ``eps``.

    Args:
        logits: any shape; converted to float32.
        eps: lower bound of x and 1 - x.

    Returns:
        float32, the same shape, within ``+-log(1 / eps)``.
    """
    logits = logits.float()
    floor = math.log(eps)
    return F.logsigmoid(logits).clamp(min=floor) - F.logsigmoid(-logits).clamp(min=floor)


def generalized_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Generalized IoU of corresponding boxes, with broadcasting (Rezatofighi et al., 2019).

    torchvision's functions compute all pairs of two lists, or add 1e-7 to every area, which is not
    negligible for a box of a few pixels in 0..1 coordinates.

    Args:
        boxes1_xyxy, boxes2_xyxy: float ``(..., 4)``, broadcastable, ``x0 <= x1`` and ``y0 <= y1``.

    Returns:
        ``(...)`` in -1..1; 0 for two empty boxes at the same position, never NaN.
    """
    tiny = torch.finfo(boxes1_xyxy.dtype).tiny
    # coordinate by coordinate: a product over a dimension of 2 is slow, and its gradient waits for
    # the GPU to check for zero factors
    left1, top1, right1, bottom1 = boxes1_xyxy.unbind(-1)
    left2, top2, right2, bottom2 = boxes2_xyxy.unbind(-1)
    width = torch.min(right1, right2) - torch.max(left1, left2)
    height = torch.min(bottom1, bottom2) - torch.max(top1, top2)
    intersection = width.clamp(min=0) * height.clamp(min=0)
    area1 = (right1 - left1) * (bottom1 - top1)
    area2 = (right2 - left2) * (bottom2 - top2)
    union = area1 + area2 - intersection
    hull_width = torch.max(right1, right2) - torch.min(left1, left2)
    hull = hull_width * (torch.max(bottom1, bottom2) - torch.min(top1, top2))
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
