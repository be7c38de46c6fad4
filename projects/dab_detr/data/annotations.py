"""Checks on annotations before a training: what cannot be right is an error, what can be mended is.

Two steps, because Detectron2 loads in between: :func:`read_coco` refuses files in COCO's format
whose references do not fit; :func:`clean_records` mends the loaded records of any data set.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from dab_detr.errors import InputError, listed
from dab_detr.files import write_whole

# fields of COCO's format that everything after this relies on
_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def read_coco(path: str | os.PathLike, *, annotated: bool = True) -> dict[str, list[dict]]:
    """Read a file in COCO's detection format and check it.

    Args:
        annotated: False allows a file without ``annotations``, of which an evaluation makes
            nothing but a file of results.

    Returns:
        Its content; ``images``, ``categories`` and ``annotations`` hold at least one entry each,
        all with the fields that are needed, unique ids and references that exist.

    Raises:
        InputError: naming the file and the first entries that are wrong.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"The annotations {path} cannot be read as JSON ({reason}).") from error
    if not isinstance(content, dict):
        raise InputError(
            f"The annotations {path} hold a {type(content).__name__}; COCO's format is an object "
            f"with {', '.join(_FIELDS)}."
        )
    if not annotated and "annotations" not in content:
        sections = ("images", "categories")
    else:
        sections = tuple(_FIELDS)
    for section in sections:
        _check_section(path, content, section, _FIELDS[section])
    _check_images(path, content["images"])
    _check_categories(path, content["categories"])
    if "annotations" in sections:
        _check_references(path, content)
        _check_annotations(path, content["annotations"])
    return content


def _check_section(path, content: dict, section: str, fields: tuple[str, ...]) -> None:
    entries = content.get(section)
    if not isinstance(entries, list):
        raise InputError(f"The annotations {path} have no list {section!r}, as COCO's format has.")
    if not entries:
        raise InputError(f"The annotations {path} hold no {section}.")
    for index, entry in enumerate(entries):
        lacking = fields if not isinstance(entry, dict) else [f for f in fields if f not in entry]
        if lacking:
            raise InputError(
                f"The annotations {path} are wrong: entry {index} of {section} lacks "
                f"{', '.join(lacking)}."
            )
    # text is common for images; Detectron2 sorts them, so they have to be of one kind
    kinds = {type(entry["id"]) for entry in entries}
    if kinds != {int} and not (section == "images" and kinds == {str}):
        odd = next(entry["id"] for entry in entries if type(entry["id"]) is not int)
        raise InputError(
            f"The annotations {path} are wrong: {odd!r} is no id of {section}; whole numbers are "
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
                    f"{field} {number!r}, which {section} do not have."
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


def _check_categories(path, categories: list[dict]) -> None:
    names = [category["name"] for category in categories]
    for category, name in zip(categories, names):
        if not isinstance(name, str) or not name:
            raise InputError(
                f"The annotations {path} are wrong: category {category['id']} has the name "
                f"{name!r}."
            )
        if names.count(name) > 1:
            raise InputError(
                f"The annotations {path} use the name {name!r} for more than one category."
            )


def _check_annotations(path, annotations: list[dict]) -> None:
    for annotation in annotations:
        where = f"The annotations {path} are wrong: annotation {annotation['id']} has"
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise InputError(
                f"{where} the bbox {str(box)[:100]}; four numbers, [x, y, width, height], are "
                "needed."
            )
        if annotation.get("ignore"):
            raise InputError(
                f'{where} "ignore", which Detectron2 does not know; mark such regions with '
                '"iscrowd": 1.'
            )
        if annotation.get("iscrowd", 0) not in (0, 1):
            raise InputError(f"{where} the iscrowd {annotation['iscrowd']!r}; 0 or 1 is needed.")


def _is_number(value: Any) -> bool:
    """Also NaN and infinity, but nothing that does not fit into a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**53


def check_same_categories(train_path, train: dict, val_path, val: dict) -> None:
    """See that the categories of two files have the same ids and names.

    Raises:
        InputError: naming what one of them lacks.
    """
    first, second = (
        {entry["id"]: entry["name"] for entry in content["categories"]} for content in (train, val)
    )
    if first == second:
        return
    differing = [
        f"{number} is {first.get(number, 'missing')!r} and {second.get(number, 'missing')!r}"
        for number in {**first, **second}
        if first.get(number) != second.get(number)
    ]
    raise InputError(
        f"The categories of {train_path} and {val_path} differ: id {listed(differing)}; give both "
        "files the same."
    )


class Findings:
    """What was found in the records of a data set, by kind; as text, counts and a few examples."""

    def __init__(self):
        self._examples: dict[str, list[str]] = {}

    def note(self, kind: str, example: str) -> None:
        self._examples.setdefault(kind, []).append(example)

    def count(self, kind: str) -> int:
        return len(self._examples.get(kind, ()))

    def first(self, kind: str) -> str:
        return self._examples[kind][0]

    def __str__(self) -> str:
        return "\n".join(
            f"{len(examples)} {kind}: {listed(examples)}"
            for kind, examples in self._examples.items()
        )


MISSING = "images do not exist and are left out"
CLIPPED = "boxes reach outside their image and are clipped"
DROPPED = "boxes have no size, a negative one, or lie outside their image, and are dropped"
NOT_FINITE = "boxes are not finite numbers and are dropped"
CROWDS = "crowd regions are not learnt from"
EMPTY = "images have no boxes"


def clean_records(records: Iterable[dict]) -> tuple[list[dict], Findings]:
    """Clip and drop boxes, and leave out images that do not exist.

    Args:
        records: in Detectron2's standard format, of any data set. They are not changed.

    Returns:
        The records to train on, and what was found. Images without boxes stay (the config's
        ``dataloader.train.dataset.filter_empty`` leaves them out, if that is wanted).
    """
    findings = Findings()
    exists = _Folders()
    kept = []
    for record in records:
        file_name = record.get("file_name", "")
        if file_name and not exists(file_name):
            findings.note(MISSING, file_name)
            continue
        if "annotations" in record:
            annotations = []
            for annotation in record["annotations"]:
                cleaned, found = _clean(annotation, record)
                if found is not None:
                    findings.note(found, f"{annotation.get('bbox')} in {file_name or '?'}")
                if cleaned is not None:
                    annotations.append(cleaned)
            if not annotations:
                findings.note(EMPTY, file_name)
            record = {**record, "annotations": annotations}
        kept.append(record)
    return kept, findings


def _clean(annotation: dict, record: dict) -> tuple[dict | None, str | None]:
    """The annotation with its box inside the image, None if there is nothing to learn from it; and
    what was found, if anything."""
    if annotation.get("iscrowd"):
        return None, CROWDS
    if annotation["bbox_mode"] not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return annotation, None
    box = [float(x) for x in annotation["bbox"]]
    clipped = _clip(box, annotation["bbox_mode"], record.get("width"), record.get("height"))
    if clipped is None:
        return None, DROPPED if all(map(math.isfinite, box)) else NOT_FINITE
    if clipped == box:
        return annotation, None
    return {**annotation, "bbox": clipped}, CLIPPED


def _clip(box: list[float], mode: BoxMode, width: float | None, height: float | None):
    """The part of a box that lies in the image, in the same mode; None if there is none, or the box
    is not finite."""
    if not all(map(math.isfinite, box)):
        return None
    left, top, right, bottom = box
    if mode == BoxMode.XYWH_ABS:
        right, bottom = left + right, top + bottom
    if right <= left or bottom <= top:
        return None
    # sums of decimal fractions overshoot a little; that is nobody's mistake
    tolerance = 1e-3
    inner = [
        0.0 if left < -tolerance else left,
        0.0 if top < -tolerance else top,
        float(width) if width is not None and right > width + tolerance else right,
        float(height) if height is not None and bottom > height + tolerance else bottom,
    ]
    if inner == [left, top, right, bottom]:
        return box
    left, top, right, bottom = inner
    if right <= left or bottom <= top:
        return None
    return [left, top, right - left, bottom - top] if mode == BoxMode.XYWH_ABS else inner


class _Folders:
    """Whether files exist, by one listing a folder: quick on network file systems too."""

    def __init__(self):
        self._names: dict[str, set[str]] = {}

    def __call__(self, file_name: str) -> bool:
        if "://" in file_name:
            return True
        folder, name = os.path.split(file_name)
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(folder or "."))
            except OSError:
                self._names[folder] = set()
        return name in self._names[folder]


def coco_records(content: dict[str, list[dict]], folder: str | os.PathLike) -> list[dict]:
    """Records in Detectron2's standard format: boxes and classes, nothing else.

    Detectron2's own loader leaves out objects whose masks it cannot use.

    Args:
        content: of :func:`read_coco`. folder: of the images.
    """
    classes = contiguous_ids(content)
    records = {
        image["id"]: {
            "file_name": os.path.join(folder, image["file_name"]),
            "image_id": image["id"],
            "height": int(image["height"]),
            "width": int(image["width"]),
            "annotations": [],
        }
        for image in content["images"]
    }
    for annotation in content["annotations"]:
        records[annotation["image_id"]]["annotations"].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": classes[annotation["category_id"]],
                "iscrowd": annotation.get("iscrowd", 0),
            }
        )
    return [records[number] for number in sorted(records)]


def contiguous_ids(content: dict[str, list[dict]]) -> dict[int, int]:
    """From a file's category ids, in ascending order, to classes 0..K-1."""
    return {
        number: index
        for index, number in enumerate(sorted(entry["id"] for entry in content["categories"]))
    }


def write_ground_truth(content: dict[str, Any], path: str | os.PathLike) -> None:
    """Write what is evaluated against: the file's objects, mended as for training.

    pycocotools needs ``area`` and ``iscrowd``, which many files lack, and counts a box that nothing
    can match as missed.

    Args:
        content: of :func:`read_coco`.
        path: made or replaced as a whole.

    Raises:
        InputError: if no box remains.
    """
    images = {image["id"]: image for image in content["images"]}
    annotations = []
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        box = [float(x) for x in annotation["bbox"]]
        box = _clip(box, BoxMode.XYWH_ABS, image["width"], image["height"])
        if box is not None:
            defaults = {"area": box[2] * box[3], "iscrowd": 0}
            # masks are not evaluated, and pycocotools stumbles over unusual ones
            entry = {k: v for k, v in annotation.items() if k not in ("segmentation", "keypoints")}
            annotations.append({**defaults, **entry, "bbox": box})
    if not annotations:
        raise InputError("The annotations to evaluate on have no box with a size in its image.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = json.dumps({"info": {}, **content, "annotations": annotations}).encode()
    write_whole(path, lambda file: file.write(complete))
