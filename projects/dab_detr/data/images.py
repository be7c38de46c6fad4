"""Reads image files of all kinds: upright, three channels of 8 bits."""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from dab_detr.errors import one_line

_EXIF_ORIENTATION = 0x0112
# PIL.ImageOps.exif_transpose() has the same table. But it rewrites the whole EXIF block, fails for
# invalid values of cameras and programs, and needs the decoded pixels to know the size.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# what an image is read from: a path or address, the bytes of a file, or what Pillow has opened
ImageSource = str | os.PathLike | bytes | Image.Image

# Resizing a narrower image would remove a side or take gigabytes of memory.
_MOST_ASPECT_RATIO = 500
_ROTATIONS_BY_90 = [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]


class UnreadableImage(Exception):
    """An image file that cannot be used; the message names it and says why."""


def read_image(
    source: ImageSource,
    format: str = "RGB",
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Read an image like Detectron2's ``read_image``, but correctly for every kind of file.

    Detectron2 reads 16-bit greyscale as white, and its pure-Python copy ignores the EXIF
    orientation.

    Args:
        source: greyscale (8 or 16 bits), palette, RGB, RGBA (alpha is dropped) or CMYK.
        format: "RGB", "BGR" or another format of Detectron2.
        size: annotated (height, width). If only the unrotated pixels have this size, the
            annotations ignore the EXIF orientation, and so does this function.
        max_pixels: larger images are refused before they are decoded; None: Pillow's limit.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        UnreadableImage: if the file is missing, damaged, of an unknown kind, too large, of another
            size, or more than 500 times as long as it is wide.
    """
    with _opened(source, max_pixels) as image:
        image.load()
        method = _transposition(image, source, size)
    upright = image.transpose(method) if method is not None else image
    return convert_PIL_to_numpy(_eight_bits(upright, source), format)


def image_size(path: str | os.PathLike, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """The (height, width) of an image as :func:`read_image` returns it, without decoding it.

    Args:
        path, size: as for :func:`read_image`.

    Raises:
        UnreadableImage: if the file is missing, of an unknown kind, of another size, or too narrow.
    """
    with _opened(path) as image:
        if size is not None and image.size == (size[1], size[0]):
            # rotated or not, this is the size of the annotations
            return size
        width, height = image.size
        is_rotated = _transposition(image, path, size) in _ROTATIONS_BY_90
    return (width, height) if is_rotated else (height, width)


def missing_files(file_names: Iterable[str]) -> list[str]:
    """Files that do not exist; lists each folder once, which is also fast on network file systems.

    Files at remote addresses are not checked.
    """
    folders: dict[str, set[str]] = {}
    missing = []
    for file_name in file_names:
        if "://" in file_name:
            continue
        folder, name = os.path.split(file_name)
        if folder not in folders:
            try:
                with os.scandir(folder or ".") as entries:
                    # follows links: a broken link is not a file
                    folders[folder] = {entry.name for entry in entries if entry.is_file()}
            except OSError:
                folders[folder] = set()
        if name not in folders[folder]:
            missing.append(file_name)
    return missing


@contextlib.contextmanager
def _opened(source: ImageSource, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image without decoding it; errors inside become :class:`UnreadableImage`."""
    try:
        with _pillow_image(source) as image:
            width, height = image.size
            if max_pixels is not None and width * height > max_pixels:
                raise UnreadableImage(
                    f"The image {name_of(source)} is {width} x {height} pixels, more than the "
                    f"limit of {max_pixels:,} pixels: reduce it, or raise the limit (max_pixels)."
                )
            if max(image.size) > _MOST_ASPECT_RATIO * min(image.size):
                raise UnreadableImage(
                    f"The image {name_of(source)} is {width} x {height} pixels, too narrow to be "
                    f"resized: one side is more than {_MOST_ASPECT_RATIO} times the other."
                )
            yield image
    except (MemoryError, UnreadableImage):
        raise
    # decoders fail in many ways for damaged files
    except Exception as error:
        raise UnreadableImage(
            f"The image {name_of(source)} cannot be read: {_reason(error)}."
        ) from error


@contextlib.contextmanager
def _pillow_image(source: ImageSource) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
        return
    is_content = isinstance(source, bytes)
    with io.BytesIO(source) if is_content else PathManager.open(os.fspath(source), "rb") as file:
        yield Image.open(file)


def name_of(source: ImageSource) -> str:
    """What an image is called in messages."""
    if isinstance(source, Image.Image):
        return f"of the mode {source.mode}"
    return f"of {len(source)} bytes" if isinstance(source, bytes) else os.fspath(source)


def _transposition(
    image: Image.Image, source: ImageSource, size: tuple[int, int] | None
) -> Image.Transpose | None:
    """The transposition that makes the image upright; None if it is upright."""
    method = _UPRIGHT.get(_orientation(image))
    upright = image.size[::-1] if method in _ROTATIONS_BY_90 else image.size
    if size is None or upright == (size[1], size[0]):
        return method
    if image.size == (size[1], size[0]):
        return None
    raise UnreadableImage(
        f"The image {name_of(source)} is {upright[0]} x {upright[1]} pixels, but its annotation "
        f"says {size[1]} x {size[0]} (width x height)."
    )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    # a damaged EXIF block does not affect the pixels
    except Exception:
        return 1


def _eight_bits(image: Image.Image, source: ImageSource) -> Image.Image:
    """Convert 16 bits per channel to 8; other kinds of image are left to Pillow's conversion."""
    if image.mode == "F":
        raise UnreadableImage(
            f"The image {name_of(source)} has floating-point values, whose range is unknown; save "
            "it with 8 or 16 bits."
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(
            f"The image {name_of(source)} has values beyond 16 bits; save it with 8 or 16 bits."
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known kind"
    return one_line(error).rstrip(".")
