"""Images from files: upright, three channels of 8 bits, whatever kind of file it is."""

import contextlib
import os
from collections.abc import Iterable, Iterator

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image

_EXIF_ORIENTATION = 0x0112
# PIL.ImageOps.exif_transpose() has the same table. It also writes the whole EXIF block again and
# fails on values that cameras and programs got wrong, and has to have the pixels to know the size.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Resized, a narrower image loses all its pixels or takes gigabytes of memory.
_MOST_ASPECT_RATIO = 500
_QUARTER_TURNS = [_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]


class UnreadableImage(Exception):
    """An image file that cannot be used; the message names it and says why."""


def read_image(
    path: str | os.PathLike, format: str = "RGB", size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read an image as Detectron2's ``read_image`` does, but correct for every kind of file.

    Detectron2 turns 16-bit greyscale white, and its pure-Python copy ignores the EXIF orientation.

    Args:
        path: greyscale (8 or 16 bits), palette, RGB, RGBA (the alpha is left out) or CMYK.
        format: "RGB", "BGR" or another that Detectron2 knows.
        size: (height, width) that the annotations were made for. Where it fits the pixels only as
            they are stored, the annotations ignore the EXIF orientation, and so does this function.

    Returns:
        uint8 ``(H, W, 3)``.

    Raises:
        UnreadableImage: if the file is missing, damaged, of an unknown kind, of another size, or
            more than 500 times as long as it is wide.
    """
    with _opened(path) as image:
        image.load()
        method = _turn(image, path, size)
    turned = image.transpose(method) if method is not None else image
    return convert_PIL_to_numpy(_eight_bits(turned, path), format)


def image_size(path: str | os.PathLike, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """The height and width of an image as :func:`read_image` gives it; its pixels are not decoded.

    Args:
        path, size: as for :func:`read_image`.

    Raises:
        UnreadableImage: if the file is missing, of an unknown kind, of another size, or too narrow.
    """
    with _opened(path) as image:
        if size is not None and image.size == (size[1], size[0]):
            # turned or not, this is what the annotations are for
            return size
        width, height = image.size
        turned = _turn(image, path, size) in _QUARTER_TURNS
    return (width, height) if turned else (height, width)


def missing_files(file_names: Iterable[str]) -> list[str]:
    """Those that do not exist, by one listing a folder: quick on network file systems too.

    Files at remote addresses are not looked for.
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
                    # follows links: one that leads nowhere is no file
                    folders[folder] = {entry.name for entry in entries if entry.is_file()}
            except OSError:
                folders[folder] = set()
        if name not in folders[folder]:
            missing.append(file_name)
    return missing


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """An image whose pixels have not been decoded; an error inside makes it unreadable."""
    try:
        with PathManager.open(os.fspath(path), "rb") as file:
            image = Image.open(file)
            if max(image.size) > _MOST_ASPECT_RATIO * min(image.size):
                raise UnreadableImage(
                    f"The image {path} is {image.size[0]} x {image.size[1]} pixels, too narrow to "
                    f"be resized: one side is more than {_MOST_ASPECT_RATIO} times the other."
                )
            yield image
    except (MemoryError, UnreadableImage):
        raise
    # decoders stumble over damaged files in many ways
    except Exception as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else _reason(error)
        raise UnreadableImage(f"The image {path} cannot be read: {reason}.") from error


def _turn(
    image: Image.Image, path: str | os.PathLike, size: tuple[int, int] | None
) -> Image.Transpose | None:
    """What makes the image upright, None where nothing has to be done."""
    method = _UPRIGHT.get(_orientation(image))
    upright = image.size[::-1] if method in _QUARTER_TURNS else image.size
    if size is None or upright == (size[1], size[0]):
        return method
    if image.size == (size[1], size[0]):
        return None
    raise UnreadableImage(
        f"The image {path} is {upright[0]} x {upright[1]} pixels, but its annotation says "
        f"{size[1]} x {size[0]} (width x height)."
    )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    # a damaged EXIF block says nothing about the pixels
    except Exception:
        return 1


def _eight_bits(image: Image.Image, path: str | os.PathLike) -> Image.Image:
    """Bring 16 bits a pixel to 8; other kinds of image are left to Pillow's conversion."""
    if image.mode == "F":
        raise UnreadableImage(
            f"The image {path} holds floating-point values, whose range is unknown; save it with "
            "8 or 16 bits."
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(
            f"The image {path} holds values beyond 16 bits; save it with 8 or 16 bits."
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
