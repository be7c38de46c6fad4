"""What a prediction is made for: reads images of all kinds, and resizes them for the model."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image
from torch import Tensor

from dab_detr.data.images import UnreadableImage, read_image
from dab_detr.errors import InputError

CHANNELS = ("RGB", "BGR")


class Prepared(NamedTuple):
    """An image, ready for a model.

    Attributes:
        pixels: uint8 ``(H, W, C)``, the whole image in the model's format.
        resized: uint8 ``(C, h, w)``, the model's input.
    """

    pixels: np.ndarray
    resized: Tensor


def is_single(inputs: Any) -> bool:
    """Whether this is one image; else it is an iterable of images.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(inputs, np.ndarray | Tensor):
        return inputs.ndim < 4
    if isinstance(inputs, str | os.PathLike | bytes | bytearray | Image.Image):
        return True
    if hasattr(inputs, "read"):
        return True
    if isinstance(inputs, Iterable) and not isinstance(inputs, Mapping):
        return False
    raise _not_an_image(inputs)


def read_pixels(
    source: Any, format: str = "RGB", *, channels: str = "RGB", max_pixels: int | None = None
) -> np.ndarray:
    """Read one image.

    Args:
        source: a path or address; the bytes of a file, or an open binary file; a PIL image; an
            array ``(H, W)`` or ``(H, W, 1, 3 or 4)`` or a tensor ``(1, 3 or 4, H, W)``, uint8. The
            fourth channel is dropped. Files, bytes and PIL images are read as in training, see
            :func:`~dab_detr.data.images.read_image`.
        format: of the result: "RGB", "BGR" or another format of Detectron2.
        channels: order of the channels of arrays and tensors, "RGB" or "BGR".
        max_pixels: limit for files, bytes and PIL images.

    Returns:
        uint8 ``(H, W, C)``.

    Raises:
        InputError: if it cannot be read.
    """
    if channels not in CHANNELS:
        raise InputError(f"channels is {channels!r}; choose one of {', '.join(CHANNELS)}.")
    if isinstance(source, np.ndarray | Tensor):
        rgb = _rgb(source)
        if channels == "BGR":
            rgb = rgb[:, :, ::-1]
        if format == "RGB":
            return rgb
        return convert_PIL_to_numpy(Image.fromarray(np.ascontiguousarray(rgb)), format)
    if hasattr(source, "read") and not isinstance(source, Image.Image):
        source = source.read()
    if isinstance(source, bytearray):
        source = bytes(source)
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        raise _not_an_image(source)
    try:
        return read_image(source, format, max_pixels=max_pixels)
    except UnreadableImage as error:
        raise InputError(str(error)) from error


def resize(pixels: np.ndarray, short_edge: int | None, max_size: int | None) -> Tensor:
    """Resize like Detectron2's ``ResizeShortestEdge``, the rule of the test data.

    Args:
        pixels: uint8 ``(H, W, C)``.
        short_edge: of the result, in pixels; None: keep the size.
        max_size: the most pixels of the longer side; None: any.

    Returns:
        uint8 ``(C, h, w)``.

    Raises:
        ValueError: for an image so narrow that no pixel of one side would be left.
    """
    if short_edge is not None:
        height, width = pixels.shape[:2]
        size = T.ResizeShortestEdge.get_output_shape(
            height, width, short_edge, np.inf if max_size is None else max_size
        )
        if min(size) < 1:
            raise ValueError(f"{width} x {height} pixels are too narrow to be resized.")
        pixels = T.ResizeTransform(height, width, *size, Image.BILINEAR).apply_image(pixels)
    return torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _rgb(source: np.ndarray | Tensor) -> np.ndarray:
    """uint8 ``(H, W, 3)`` in the given order of channels."""
    is_tensor = isinstance(source, Tensor)
    kind, layout = ("tensor", "(C, H, W)") if is_tensor else ("array", "(H, W, C)")
    shape = tuple(source.shape)
    if source.dtype != (torch.uint8 if is_tensor else np.uint8):
        raise InputError(
            f"The image is a {kind} of {source.dtype}; uint8 with values from 0 to 255 is needed."
        )
    array = source.numpy(force=True) if is_tensor else source
    if array.ndim == 2:
        array = array[:, :, None]
    elif is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise InputError(
            f"The image is a {kind} of the shape {shape}; {layout} with 1, 3 or 4 channels C is "
            "needed."
        )
    return array.repeat(3, axis=2) if array.shape[2] == 1 else array[:, :, :3]


def _not_an_image(given: Any) -> InputError:
    hint = " (cv2.imread returns it for a file that it cannot read)" if given is None else ""
    return InputError(
        f"The image is a {type(given).__name__}{hint}; a path, bytes, a PIL image, a NumPy array "
        "or a tensor is needed."
    )
