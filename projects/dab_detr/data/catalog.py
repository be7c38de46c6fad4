"""Detectron2's catalog of data sets, with checked records in the place of what is registered."""

import difflib
from collections.abc import Callable, Iterable
from functools import cached_property
from types import ModuleType
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import coco as host
from detectron2.data.datasets import pascal_voc as host_voc

from dab_detr.data.coco import class_names, coco_records, read_coco, unused_roots
from dab_detr.data.findings import CLIPPED, WITHIN_ONE, Findings
from dab_detr.data.images import UnreadableImage, image_size, missing_files
from dab_detr.data.records import check_records
from dab_detr.data.voc import voc_records
from dab_detr.errors import InputError


class CheckedDataset:
    """A data set of Detectron2's catalog, loaded and checked once a process.

    In the catalog it stands for the function that was registered, so that loaders, evaluators and
    pictures see the same records. Files in COCO's format that were registered by Detectron2's
    ``register_coco_instances``, as its built-in ones are, are read by :func:`read_coco`: the host's
    reader parses masks, and leaves out objects whose masks it cannot use. Those of
    ``register_pascal_voc`` are read by :func:`voc_records`.

    Args:
        name: in the catalog. load: the function that was registered.
    """

    def __init__(self, name: str, load: Callable[[], Any]):
        self.name = name
        self._load = load
        self._warnings: list[str] = []

    def __call__(self) -> list[dict]:
        return list(self.records)

    @property
    def title(self) -> str:
        """The name for messages, and the file behind it."""
        file = MetadataCatalog.get(self.name).get("json_file")
        return f"{self.name!r} ({file})" if file else repr(self.name)

    @property
    def records(self) -> list[dict]:
        """See :func:`check_records`.

        Raises:
            InputError: if the data cannot be loaded or are wrong.
        """
        return self._checked[0]

    @property
    def findings(self) -> Findings:
        """What was mended."""
        return self._checked[1]

    @property
    def classes(self) -> list[str]:
        """The names of its classes; empty if it has none."""
        return self._checked[2]

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences on what is probably not as meant."""
        sentences = list(self._warnings)
        kept = sum(len(record.get("annotations", ())) for record in self.records)
        if kept and self.findings.count(WITHIN_ONE) == kept:
            sentences.append(
                f"All boxes of {self.title} lie within 0..1: pixels are needed. Relative boxes "
                "are understood with BoxMode.XYWH_REL or XYXY_REL as bbox_mode only."
            )
        if self.findings.count(CLIPPED) * 2 > kept:
            sentences.append(
                f"Most boxes of {self.title} reach outside their image: are they two corners, "
                "where x, y, width and height are meant?"
            )
        return sentences

    @cached_property
    def _checked(self) -> tuple[list[dict], Findings, list[str]]:
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
        # the function may be anybody's
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"The data set {self.name!r} cannot be loaded: {reason}") from error
        # loading may have set them
        classes = MetadataCatalog.get(self.name).get("thing_classes")
        if classes is not None and not _are_names(classes):
            raise InputError(f"The thing_classes of {self.name!r} are no list of names: {classes}.")
        count = None if classes is None else len(classes)
        return *check_records(self.name, records, count), list(classes or ())

    def _coco(self) -> list[dict]:
        metadata = MetadataCatalog.get(self.name)
        content = read_coco(metadata.json_file)
        classes = class_names(content)
        learnt = {
            "thing_classes": list(classes.values()),
            "thing_dataset_id_to_contiguous_id": {k: i for i, k in enumerate(classes)},
        }
        for key, value in learnt.items():
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
                'supercategory "none": if it only stands above the others, take it out of the file.'
            )
        return coco_records(content, metadata.image_root)

    @cached_property
    def missing_images(self) -> list[str]:
        """Files of the records that do not exist."""
        return missing_files(record["file_name"] for record in self.records)

    @cached_property
    def unusable_images(self) -> list[str]:
        """What is wrong with images that are missing, no images, or not of the size that the
        records say; each is opened, none decoded."""
        reasons = []
        for record in self.records:
            try:
                image_size(record["file_name"], (record["height"], record["width"]))
            except UnreadableImage as error:
                reasons.append(str(error))
        return reasons


def checked_dataset(name: str) -> CheckedDataset:
    """Put a :class:`CheckedDataset` in the place of a data set, unless there is one.

    Nothing is loaded yet.

    Raises:
        InputError: if no such data set is registered.
    """
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "."
        raise InputError(
            f"There is no data set {name!r}{hint} One of your own is registered by your config, "
            "or given with --train-data and --val-data."
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
    """Whether the host's function made it that registers files of a format. A function of anybody
    else may do more than read the file that the metadata name, for instance take a part of it."""
    return getattr(load, "__module__", None) == module.__name__
