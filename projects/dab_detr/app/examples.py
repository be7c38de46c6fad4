"""Images of a folder that the page offers."""

import logging
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dab_detr.errors import InputError
from dab_detr.inference.inputs import read_pixels

_MOST = 24
_THUMBNAIL = 200

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """An image, and a small picture of it to choose it by."""

    path: Path
    thumbnail: Image.Image


def find_examples(folder: str | Path, max_pixels: int | None = None) -> list[Example]:
    """The first 24 images of a folder, by name; other files and sub-folders are left out.

    Args:
        folder: of images.
        max_pixels: larger images are left out.

    Raises:
        InputError: if there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} (--examples).")
    examples: list[Example] = []
    for path in sorted(folder.iterdir()):
        if len(examples) == _MOST:
            break
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            thumbnail = Image.fromarray(read_pixels(path, max_pixels=max_pixels))
        except InputError as error:
            logger.warning(f"It is no example: {error}")
            continue
        thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL))
        examples.append(Example(path, thumbnail))
    if not examples:
        raise InputError(f"The folder {folder} has no images (--examples).")
    return examples
