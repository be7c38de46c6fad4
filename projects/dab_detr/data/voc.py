"""Reads Pascal VOC annotations, also with missing fields and decimal coordinates."""

import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from dab_detr.errors import InputError


class VOCObject(NamedTuple):
    """An object of an image.

    Attributes:
        name: class name.
        box: xmin, ymin, xmax, ymax; 1-based pixels, both ends included.
        difficult: not counted in VOC's own evaluation.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class VOCImage(NamedTuple):
    """The content of an annotation file."""

    name: str
    path: str
    height: int
    width: int
    objects: list[VOCObject]


def voc_images(dirname: str, split: str, class_names: Sequence[str]) -> Iterator[VOCImage]:
    """Read the annotations of a split in VOC's layout.

    Args:
        dirname: folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: name of the list of images, ``ImageSets/Main/<split>.txt``.
        class_names: all allowed classes.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    list_file = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    try:
        # some editors write a byte order mark
        with PathManager.open(list_file, encoding="utf-8-sig") as file:
            # the lists of a class have a number after the name
            names = [line.split()[0] for line in file if line.strip()]
    except OSError as error:
        raise InputError(f"The list of images {list_file} cannot be read: {error}.") from error
    for name in names:
        image = read_annotation(os.path.join(dirname, "Annotations", f"{name}.xml"), name)
        for found in image.objects:
            if found.name not in class_names:
                raise InputError(
                    f"The annotation {image.path} has an object of the class {found.name!r}; the "
                    f"data set has {', '.join(class_names)}."
                )
        yield image


def read_annotation(path: str | os.PathLike, name: str | None = None) -> VOCImage:
    """Read an annotation file. Only size, names and boxes are required.

    Args:
        name: name of the image; None: the name of the file.

    Raises:
        InputError: naming the file and what is wrong with it.
    """
    try:
        # as bytes: the file declares its encoding
        with PathManager.open(os.fspath(path), "rb") as file:
            root = ET.parse(file).getroot()
    # the last two are raised for unknown encodings
    except (OSError, ET.ParseError, LookupError, ValueError) as error:
        raise InputError(f"The annotation {path} cannot be read as XML: {error}.") from error
    width, height = (_number(path, root, f"size/{side}") for side in ("width", "height"))
    objects = []
    for node in root.findall("object"):
        label = (node.findtext("name") or "").strip()
        if not label:
            raise InputError(f"The annotation {path} has an object without a name.")
        sides = ("xmin", "ymin", "xmax", "ymax")
        box = tuple(_number(path, node, f"bndbox/{side}") for side in sides)
        difficult = (node.findtext("difficult") or "0").strip() not in ("", "0")
        objects.append(VOCObject(label, box, difficult))
    return VOCImage(name or Path(path).stem, os.fspath(path), int(height), int(width), objects)


def _number(path: str | os.PathLike, node: ET.Element, place: str) -> float:
    text = node.findtext(place)
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        what = "lacks" if text is None else f"has {text!r} as"
        raise InputError(f"The annotation {path} {what} {node.tag}/{place}; a number is needed.")
    return number


def voc_records(dirname: str, split: str, class_names: Sequence[str]) -> list[dict]:
    """Records in Detectron2's standard format, difficult objects included, as Detectron2 has them.

    Args, Raises: as for :func:`voc_images`.
    """
    return [
        {
            "file_name": os.path.join(dirname, "JPEGImages", f"{image.name}.jpg"),
            "image_id": image.name,
            "height": image.height,
            "width": image.width,
            "annotations": [
                {
                    "category_id": list(class_names).index(found.name),
                    # from 1-based pixels to 0-based edges
                    "bbox": [found.box[0] - 1, found.box[1] - 1, *found.box[2:]],
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
                for found in image.objects
            ],
        }
        for image in voc_images(dirname, split, class_names)
    ]
