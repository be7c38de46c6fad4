"""Normalises records of any data set; refuses what is ambiguous or wrong."""

import math
import operator
import os
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from dab_detr.data import boxes
from dab_detr.data.images import UnreadableImage, image_size
from dab_detr.data.validation_report import (
    AREA,
    CLIPPED,
    DROPPED,
    MISSING,
    NOT_FINITE,
    ROTATED,
    WITHIN_ONE,
    ValidationReport,
)
from dab_detr.errors import InputError

_MODES = "BoxMode.XYWH_ABS for [x, y, width, height] or BoxMode.XYXY_ABS for two corners"
# not needed for boxes, and not checked
_NOT_BOXES = ("segmentation", "keypoints")


def check_records(
    name: str, records: Any, num_classes: int | None
) -> tuple[list[dict[str, Any]], ValidationReport]:
    """Normalise and check the records of a data set.

    Whole numbers may have any type; boxes may be lists, arrays or tensors in any of Detectron2's
    modes; paths may be ``Path`` objects. A missing ``image_id`` is replaced by the record's index,
    a missing size is read from the image, a missing ``iscrowd`` is 0. Boxes are clipped to their
    image; boxes entirely outside are dropped.

    Args:
        name: of the data set. records: an iterable of Detectron2's dicts; they are not changed.
        num_classes: number of class names of the data set; None if it has no such list.

    Returns:
        New records with ``file_name``, ``image_id`` (int or str), ``height``, ``width`` and, if any
        of the given records has them, ``annotations`` with ``bbox`` (floats) in the ``bbox_mode``
        ``XYWH_ABS`` or ``XYXY_ABS``, ``category_id`` in 0..K-1, ``iscrowd`` 0 or 1, and a positive
        ``area``; other fields are unchanged, masks and keypoints are removed. Images of unknown
        size that cannot be opened are left out. The second value reports what was changed.

    Raises:
        InputError: naming the data set, the record, its file, and the field and value.
    """
    if isinstance(records, dict | str | bytes) or not isinstance(records, Iterable):
        raise InputError(
            f"The data set {name!r} is a {type(records).__name__}; a list of Detectron2's dicts is "
            "needed."
        )
    return _Check(name, list(records), num_classes).run()


class _Wrong(Exception):
    """What is wrong with a record; the message is completed with the record's name."""


class _Check:
    def __init__(self, name: str, records: list, num_classes: int | None):
        self._name = name
        self._records = records
        self._num_classes = num_classes
        self._report = ValidationReport()

    def run(self) -> tuple[list[dict], ValidationReport]:
        entries = [record for record in self._records if isinstance(record, dict)]
        self._annotated = any(record.get("annotations") is not None for record in entries)
        self._numbered = any(record.get("image_id") is not None for record in entries)
        kept = []
        for index, record in enumerate(self._records):
            try:
                checked = self._record(index, record)
            except _Wrong as error:
                file = record.get("file_name") if isinstance(record, dict) else None
                place = f"record {index} ({file})" if file else f"record {index}"
                raise InputError(
                    f"The data set {self._name!r} is wrong: {place} {error}."
                ) from error
            if checked is not None:
                kept.append(checked)
        return kept, self._report

    def _record(self, index: int, record: Any) -> dict | None:
        if not isinstance(record, dict):
            raise _Wrong(f"is a {type(record).__name__}; a dict is needed")
        file_name = record.get("file_name")
        if not isinstance(file_name, str | os.PathLike) or not os.fspath(file_name):
            raise _Wrong(f"has the file_name {file_name!r}; the path of an image is needed")
        file_name = os.fspath(file_name)
        image_id = self._image_id(index, record.get("image_id"))
        size = self._size(record, file_name)
        if size is None:
            return None
        height, width = size
        checked = {
            **record,
            "file_name": file_name,
            "image_id": image_id,
            "height": height,
            "width": width,
        }
        if self._annotated:
            checked["annotations"] = self._annotations(record.get("annotations"), checked)
        else:
            checked.pop("annotations", None)
        return checked

    def _image_id(self, index: int, value: Any) -> int | str:
        if value is None:
            if self._numbered:
                raise _Wrong("has no image_id, but other records have one")
            return index
        if isinstance(value, str):
            return str(value)
        number = _whole(value)
        if number is None:
            raise _Wrong(f"has the image_id {value!r}; a whole number or text is needed")
        return number

    def _size(self, record: dict, file_name: str) -> tuple[int, int] | None:
        """(height, width); None if they are missing and the image cannot be opened."""
        given = record.get("height"), record.get("width")
        if None in given:
            try:
                return image_size(file_name)
            except UnreadableImage:
                self._report.add(MISSING, file_name)
                return None
        sizes = [_real(value) for value in given]
        if not all(size is not None and 1 <= size < math.inf for size in sizes):
            raise _Wrong(
                f"has the size {given[1]!r} x {given[0]!r} (width x height); numbers of pixels are "
                "needed"
            )
        return int(sizes[0]), int(sizes[1])

    def _annotations(self, annotations: Any, record: dict) -> list[dict]:
        if annotations is None:
            return []
        if not isinstance(annotations, list | tuple):
            raise _Wrong(f"has annotations that are a {type(annotations).__name__}, not a list")
        if annotations and self._num_classes is None:
            raise InputError(
                f"The data set {self._name!r} has no class names: set MetadataCatalog.get("
                f"{self._name!r}).thing_classes to a list with a name for each category_id."
            )
        kept = []
        for index, annotation in enumerate(annotations):
            try:
                checked = self._annotation(annotation, record)
            except _Wrong as error:
                raise _Wrong(f"has an annotation, number {index}, that {error}") from error
            if checked is not None:
                kept.append(checked)
        return kept

    def _annotation(self, annotation: Any, record: dict) -> dict | None:
        if not isinstance(annotation, dict):
            raise _Wrong(f"is a {type(annotation).__name__}; a dict is needed")
        category = annotation.get("category_id")
        label = category if type(category) is int else _whole(category)
        if label is None or not 0 <= label < self._num_classes:
            raise _Wrong(
                f"has the category_id {category!r}; the {self._num_classes} classes are numbered "
                f"0 to {self._num_classes - 1}"
            )
        crowd = annotation.get("iscrowd", 0)
        if type(crowd) is not int:
            crowd = _flag(crowd)
        if crowd not in (0, 1):
            raise _Wrong(f"has the iscrowd {annotation['iscrowd']!r}; 0 or 1 is needed")
        box, mode = self._box(annotation, record)
        clipped = boxes.clip(box, mode, record["height"], record["width"])
        if clipped is None:
            kind = DROPPED if all(map(math.isfinite, box)) else NOT_FINITE
        elif clipped is not box:
            kind = CLIPPED
        elif all(0 <= x <= 1 for x in box):
            kind = WITHIN_ONE
        else:
            kind = None
        if kind is not None:
            self._note(kind, annotation["bbox"], record)
        if clipped is None:
            return None
        checked = {
            **annotation,
            "bbox": clipped,
            "bbox_mode": mode,
            "category_id": label,
            "iscrowd": crowd,
            "area": self._area(annotation, boxes.xywh(clipped, mode), record),
        }
        for field in _NOT_BOXES:
            checked.pop(field, None)
        return checked

    def _box(self, annotation: dict, record: dict) -> tuple[list[float], BoxMode]:
        mode = annotation.get("bbox_mode")
        if type(mode) is not BoxMode:
            if mode is None:
                raise _Wrong(f"has no bbox_mode; set {_MODES}")
            number = _whole(mode)
            if number not in [*BoxMode]:
                raise _Wrong(f"has the bbox_mode {mode!r}; set {_MODES}")
            mode = BoxMode(number)
        given = annotation.get("bbox")
        box = boxes.numbers(given)
        count = 5 if mode == BoxMode.XYWHA_ABS else 4
        if box is None or len(box) != count:
            shown = "no bbox" if given is None else f"the bbox {str(given)[:100]}"
            raise _Wrong(f"has {shown}; {count} numbers are needed")
        if count == 5:
            self._note(ROTATED, given, record)
        return boxes.absolute(box, mode, record["height"], record["width"])

    def _area(self, annotation: dict, box: list[float], record: dict) -> float:
        if "area" in annotation:
            area = _real(annotation["area"])
            if area is not None and 0 < area < math.inf:
                return area
            self._note(AREA, repr(annotation["area"]), record)
        return box[2] * box[3]

    def _note(self, kind: str, value: Any, record: dict) -> None:
        self._report.add(kind, f"{value} in {record['file_name']}")


def _whole(value: Any) -> int | None:
    """A whole number of any type; None for everything else."""
    if type(value) is bool:
        return None
    try:
        return operator.index(value)
    except TypeError:
        # tables with missing values store whole numbers as floats
        real = _real(value)
        return int(real) if real is not None and real.is_integer() else None


def _flag(value: Any) -> int | None:
    """A truth value or whole number of any type; None becomes 0."""
    return int(value or 0) if value is None or isinstance(value, bool | np.bool_) else _whole(value)


def _real(value: Any) -> float | None:
    """A number of any type; None for everything else."""
    if type(value) is bool or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
