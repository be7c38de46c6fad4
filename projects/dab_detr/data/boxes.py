"""Conversion and clipping of annotated boxes, absolute XYWH or XYXY."""

import math
from typing import Any

from detectron2.structures import BoxMode

# pixels; boxes may overshoot their image a little because of rounding or inclusive coordinates
_TOLERANCE = 1.0


def numbers(values: Any) -> list[float] | None:
    """A list, tuple, array or tensor of one dimension as floats; None for anything else."""
    if type(values) is list and {*map(type, values)} == {float}:
        # the usual case; the general one takes five times as long
        return values
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple):
        return None
    if any(isinstance(value, str | bytes | bool) for value in values):
        return None
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None


def absolute(
    box: list[float], mode: BoxMode, height: int, width: int
) -> tuple[list[float], BoxMode]:
    """A box of any of Detectron2's modes as ``XYWH_ABS`` or ``XYXY_ABS``.

    Args:
        box: 4 numbers, 5 for a rotated box. height, width: of the image.
    """
    if mode in (BoxMode.XYWH_REL, BoxMode.XYXY_REL):
        scaled = [value * side for value, side in zip(box, (width, height, width, height))]
        return scaled, BoxMode.XYWH_ABS if mode == BoxMode.XYWH_REL else BoxMode.XYXY_ABS
    if mode == BoxMode.XYWHA_ABS:
        return BoxMode.convert(box, mode, BoxMode.XYXY_ABS), BoxMode.XYXY_ABS
    return box, mode


def xywh(box: list[float], mode: BoxMode) -> list[float]:
    """An absolute box as x, y, width and height."""
    if mode == BoxMode.XYWH_ABS:
        return box
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def clip(box: list[float], mode: BoxMode, height: int, width: int) -> list[float] | None:
    """The part of an absolute box that is inside the image, in the same mode.

    Returns:
        ``box`` itself if it extends beyond the image by at most a pixel, so that evaluations use
        the file's own numbers. None if it is not finite or entirely outside.
    """
    if not all(map(math.isfinite, box)):
        return None
    left, top, right, bottom = box
    if mode == BoxMode.XYWH_ABS:
        right, bottom = left + right, top + bottom
    if min(right, width) <= max(left, 0) or min(bottom, height) <= max(top, 0):
        return None
    inner = [
        0.0 if left < -_TOLERANCE else left,
        0.0 if top < -_TOLERANCE else top,
        float(width) if right > width + _TOLERANCE else right,
        float(height) if bottom > height + _TOLERANCE else bottom,
    ]
    if inner == [left, top, right, bottom]:
        return box
    return xywh(inner, BoxMode.XYXY_ABS) if mode == BoxMode.XYWH_ABS else inner
