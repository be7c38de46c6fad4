"""Replaces registered data sets in Detectron2's catalog by checked records."""

import difflib
from collections.abc import Callable, Iterable
from functools import cached_property
from types import ModuleType
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import coco as host
from detectron2.data.datasets import pascal_voc as host_voc

from dab_detr.data.coco import class_names, coco_records, read_coco, unused_roots
from dab_detr.data.images import UnreadableImage, image_size, missing_files
from dab_detr.data.records import check_records
from dab_detr.data.validation_report import CLIPPED, WITHIN_ONE, ValidationReport
from dab_detr.data.voc import voc_records
from dab_detr.errors import InputError, one_line


class CheckedDataset:
    """A data set of Detectron2's catalog, loaded and checked once per process.

    In the catalog it replaces the registered function, so that loaders, evaluators and
    visualizations use the same records. Files in COCO's format that were registered by Detectron2's
    ``register_coco_instances``, as its built-in ones are, are read by :func:`read_coco`:
    Detectron2's reader parses masks, and leaves out objects with invalid masks. Data sets of
    ``register_pascal_voc`` are read by :func:`voc_records`.

    Args:
        name: name in the catalog. load: the registered function.
    """

    def __init__(self, name: str, load: Callable[[], Any]):
        self.name = name
        self._load = load
        self._warnings: list[str] = []

    def __call__(self) -> list[dict]:
        return list(self.records)

    @property
    def title(self) -> str:
        """Name and file of the data set, for messages."""
        file = MetadataCatalog.get(self.name).get("json_file")
        return f"{self.name!r} ({file})" if file else repr(self.name)

    @property
    def records(self) -> list[dict]:
        """The checked records, see :func:`check_records`.

        Raises:
            InputError: if the data set cannot be loaded or is wrong.
        """
        return self._checked[0]

    @property
    def report(self) -> ValidationReport:
        """What was changed in the records, or left out."""
        return self._checked[1]

    @property
    def classes(self) -> list[str]:
        """Class names; empty if the data set has none."""
        return self._checked[2]

    @cached_property
    def warnings(self) -> list[str]:
        """Warnings about probable mistakes in the annotations."""
        sentences = list(self._warnings)
        kept = sum(len(record.get("annotations", ())) for record in self.records)
        if kept and self.report.count(WITHIN_ONE) == kept:
            sentences.append(
                f"All boxes of {self.title} are within 0..1, but pixels are needed. Relative boxes "
                "need the bbox_mode BoxMode.XYWH_REL or XYXY_REL."
            )
        if self.report.count(CLIPPED) * 2 > kept:
            sentences.append(
                f"Most boxes of {self.title} extend beyond their image: are they given as two "
                "corners instead of x, y, width and height?"
            )
        return sentences

    @cached_property
    def _checked(self) -> tuple[list[dict], ValidationReport, list[str]]:
        try:
            if _is_made_by(self._load, host):
                records = self._coco()
            elif _is_made_by(self._load, host_voc):
                metadata = MetadataCatalog.get(self.name)
                records = voc_records(metadata.dirname, metadata.split, metadata.thing_classes)
            else:
                records = self._load()
        except InputError:
            raise
        # a user's function may raise anything
        except Exception as error:
            reason = one_line(error)
            raise InputError(f"The data set {self.name!r} cannot be loaded: {reason}") from error
        # loading may have set the class names
        classes = MetadataCatalog.get(self.name).get("thing_classes")
        if classes is not None and not _are_names(classes):
            raise InputError(
                f"The thing_classes of {self.name!r} are not a list of names: {classes}."
            )
        count = None if classes is None else len(classes)
        return *check_records(self.name, records, count), list(classes or ())

    def _coco(self) -> list[dict]:
        metadata = MetadataCatalog.get(self.name)
        content = read_coco(metadata.json_file)
        classes = class_names(content)
        found = {
            "thing_classes": list(classes.values()),
            "thing_dataset_id_to_contiguous_id": {k: i for i, k in enumerate(classes)},
        }
        for key, value in found.items():
            before = metadata.get(key)
            if before is None:
                metadata.set(**{key: value})
            elif type(value)(before) != value:
                raise InputError(
                    f"The data set {self.name!r} is registered with the {key} {before}, but "
                    f"{metadata.json_file} has {value}: register it under another name."
                )
        for root in unused_roots(content):
            self._warnings.append(
                f"The class {root!r} of {metadata.json_file} has no annotations and the "
                'supercategory "none": if it only groups the others, remove it from the file.'
            )
        return coco_records(content, metadata.image_root)

    @cached_property
    def missing_images(self) -> list[str]:
        """Image files of the records that do not exist."""
        return missing_files(record["file_name"] for record in self.records)

    @cached_property
    def unusable_images(self) -> list[str]:
        """Reasons why images cannot be used: missing, not an image, or of another size than
        annotated. Each file is opened, none is decoded."""
        reasons = []
        for record in self.records:
            try:
                image_size(record["file_name"], (record["height"], record["width"]))
            except UnreadableImage as error:
                reasons.append(str(error))
        return reasons


def checked_dataset(name: str) -> CheckedDataset:
    """Replace a data set in the catalog by a :class:`CheckedDataset`, unless it is one already.

    Nothing is loaded yet.

    Raises:
        InputError: if no such data set is registered.
    """
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        raise InputError(
            f"There is no data set {name!r}{hint} Register a custom data set in your config, "
            "or give its files with --train-data and --val-data."
        )
    load = DatasetCatalog[name]
    if not isinstance(load, CheckedDataset):
        load = CheckedDataset(name, load)
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, load)
    return load


def use_checked_records(names: Iterable[str]) -> None:
    """:func:`checked_dataset` for those of the names that are registered."""
    for name in names:
        if name in DatasetCatalog:
            checked_dataset(name)


def checked_records(names: str | Iterable[str], **arguments: Any) -> list[dict]:
    """Detectron2's ``get_detection_dataset_dicts`` of checked records; same arguments.

    Raises:
        InputError: if a data set is not registered, cannot be loaded or is wrong.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        checked_dataset(name)
    return get_detection_dataset_dicts(names, **arguments)


def _are_names(classes: Any) -> bool:
    return isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)


def _is_made_by(load: Callable, module: ModuleType) -> bool:
    """Whether ``load`` was made by a function of this module of Detectron2. A user's function may
    do more than read the file of the metadata, for instance select a part of it."""
    return getattr(load, "__module__", None) == module.__name__
