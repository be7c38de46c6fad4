"""Reads and checks files in COCO's detection format, and makes records. Masks are ignored."""

import json
import math
import os
from collections import Counter
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from dab_detr.errors import InputError, listed, one_line

# required fields of COCO's format
_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def read_coco(path: str | os.PathLike) -> dict[str, list[dict]]:
    """Read a file in COCO's detection format and check it.

    Args:
        path: a file, or an address of Detectron2's ``PathManager``.

    Returns:
        Its content; ``images``, ``categories`` and ``annotations`` have at least one entry each,
        all with the required fields, unique ids and valid references. The list ``annotations`` may
        be missing, for images without ground truth.

    Raises:
        InputError: naming the file and the first wrong entry.
    """
    try:
        with PathManager.open(os.fspath(path), "rb") as file:
            # spreadsheets and editors write a byte order mark
            content = json.loads(file.read().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise InputError(f"The annotations {path} cannot be read as JSON ({reason}).") from error
    if not isinstance(content, dict):
        raise InputError(
            f"The annotations {path} are a JSON {type(content).__name__}; COCO's format is an "
            f"object with {', '.join(_FIELDS)}."
        )
    sections = [name for name in _FIELDS if name != "annotations" or name in content]
    for section in sections:
        _check_section(path, content, section, _FIELDS[section])
    _check_images(path, content["images"])
    if "annotations" in content:
        _check_references(path, content)
        _check_annotations(path, content["annotations"])
    _check_categories(path, content)
    return content


def class_names(content: dict[str, list[dict]]) -> dict[int, str]:
    """Category ids of a file, in ascending order, with the names of their classes.

    Some programs write an additional category that only groups the others, without annotations and
    with the name of one of them; it is not a class.

    Args:
        content: result of :func:`read_coco`.
    """
    roots = _namesakes(content)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    return {number: names[number] for number in sorted(names) if number not in roots}


def coco_records(content: dict[str, list[dict]], folder: str | os.PathLike) -> list[dict]:
    """Records in Detectron2's standard format, with boxes and classes only.

    Args:
        content: result of :func:`read_coco`. folder: folder of the images.

    Returns:
        One record per image, ordered by id; without ``annotations`` if the file has no such list.
    """
    classes = {number: index for index, number in enumerate(class_names(content))}
    records = {
        image["id"]: {
            "file_name": _path(folder, image["file_name"]),
            "image_id": image["id"],
            "height": int(image["height"]),
            "width": int(image["width"]),
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    }
    if "annotations" in content:
        for record in records.values():
            record["annotations"] = []
    for annotation in content.get("annotations", ()):
        entry = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": classes[annotation["category_id"]],
            "iscrowd": annotation.get("iscrowd", 0),
        }
        if "area" in annotation:
            entry["area"] = annotation["area"]
        records[annotation["image_id"]]["annotations"].append(entry)
    return list(records.values())


def _path(folder: str | os.PathLike, file_name: str) -> str:
    # an address is not relative to the folder
    return file_name if "://" in file_name else os.path.join(folder, file_name)


def unused_roots(content: dict[str, list[dict]]) -> list[str]:
    """Names of classes without annotations that probably only group the other classes."""
    used = {annotation["category_id"] for annotation in content.get("annotations", ())}
    names = class_names(content)
    return [
        entry["name"]
        for entry in content["categories"]
        if used
        and entry["id"] in names
        and entry["id"] not in used
        and entry.get("supercategory") == "none"
    ]


def _namesakes(content: dict[str, list[dict]]) -> set[int]:
    """Ids of root categories without annotations that have the name of another category."""
    used = {annotation["category_id"] for annotation in content.get("annotations", ())}
    counts = Counter(entry["name"] for entry in content["categories"])
    roots: dict[str, list[int]] = {}
    for entry in content["categories"]:
        is_root = entry.get("supercategory") in ("none", "")
        if counts[entry["name"]] == 2 and is_root and entry["id"] not in used:
            roots.setdefault(entry["name"], []).append(entry["id"])
    # of two such categories it is not known which is the class
    return {found[0] for found in roots.values() if len(found) == 1}


def _check_section(path, content: dict, section: str, fields: tuple[str, ...]) -> None:
    entries = content.get(section)
    if not isinstance(entries, list):
        raise InputError(f"The annotations {path} have no list {section!r}, as COCO's format has.")
    if not entries:
        raise InputError(f"The annotations {path} have no {section}.")
    for index, entry in enumerate(entries):
        lacking = fields if not isinstance(entry, dict) else [f for f in fields if f not in entry]
        if lacking:
            raise InputError(
                f"The annotations {path} are wrong: entry {index} of {section} lacks "
                f"{', '.join(lacking)}."
            )
    # text is common for images; all ids need the same type, as images are sorted by them
    kinds = {type(entry["id"]) for entry in entries}
    if kinds != {int} and not (section == "images" and kinds == {str}):
        odd = next(entry["id"] for entry in entries if type(entry["id"]) is not int)
        raise InputError(
            f"The annotations {path} are wrong: {section} have the id {odd!r}; whole numbers are "
            "needed."
        )
    numbers = Counter(entry["id"] for entry in entries)
    twice = [str(number) for number, count in numbers.items() if count > 1]
    if twice:
        raise InputError(
            f"The annotations {path} use ids of {section} more than once: {listed(twice)}."
        )


def _check_references(path, content: dict) -> None:
    for field, section in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[section]}
        for annotation in content["annotations"]:
            number = annotation[field]
            if not isinstance(number, int | str) or number not in known:
                raise InputError(
                    f"The annotations {path} are wrong: annotation {annotation['id']} has the "
                    f"{field} {number!r}, which is not in {section}."
                )


def _check_images(path, images: list[dict]) -> None:
    for image in images:
        size = image["width"], image["height"]
        if not all(_is_number(x) and 1 <= x < math.inf for x in size):
            raise InputError(
                f"The annotations {path} are wrong: image {image['id']} has the size "
                f"{size[0]!r} x {size[1]!r}."
            )
        if not isinstance(image["file_name"], str) or not image["file_name"]:
            raise InputError(
                f"The annotations {path} are wrong: image {image['id']} has the file_name "
                f"{image['file_name']!r}."
            )


def _check_categories(path, content: dict) -> None:
    for category in content["categories"]:
        if not isinstance(category["name"], str) or not category["name"]:
            raise InputError(
                f"The annotations {path} are wrong: category {category['id']} has the name "
                f"{category['name']!r}."
            )
    names = list(class_names(content).values())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"The annotations {path} use the name {twice!r} for more than one category."
        )


def _check_annotations(path, annotations: list[dict]) -> None:
    for annotation in annotations:
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            wrong = f"the bbox {str(box)[:100]}; four numbers, [x, y, width, height], are needed"
        elif annotation.get("ignore"):
            wrong = (
                '"ignore", which Detectron2 does not support; mark such regions with "iscrowd": 1'
            )
        elif annotation.get("iscrowd", 0) not in (0, 1):
            wrong = f"the iscrowd {annotation['iscrowd']!r}; 0 or 1 is needed"
        else:
            continue
        raise InputError(
            f"The annotations {path} are wrong: annotation {annotation['id']} has {wrong}."
        )


def _is_number(value: Any) -> bool:
    """Whether a value is a number that fits into a float, NaN and infinity included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**53
