"""Checks the data sets of a config before anything slow starts, and logs reports on them."""

import logging
import os
from collections import Counter
from collections.abc import Iterable

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig
from torch import nn

from dab_detr.data.catalog import CheckedDataset
from dab_detr.data.datasets import datasets_of
from dab_detr.data.validation_report import CROWDS, EMPTY, IGNORED, MISSING, ValidationReport
from dab_detr.errors import InputError, listed

logger = logging.getLogger(__name__)

_ID_MAP = "thing_dataset_id_to_contiguous_id"


def check_datasets(cfg: DictConfig, parts: Iterable[str]) -> None:
    """Check that the data sets of ``cfg.dataloader`` are registered, exist, and are valid.

    Args:
        cfg: a complete config.
        parts: the parts that will be used, of ``train`` and ``test``.

    Raises:
        InputError: naming the data set and what is wrong with it.
    """
    datasets = {part: datasets_of(cfg, part) for part in parts}
    every = [dataset for part in datasets.values() for dataset in part]
    for dataset in every:
        _check_files(dataset.name)
    for dataset in every[1:]:
        _check_same_classes(every[0], dataset)
    if "train" in datasets:
        _check_train(datasets["train"], cfg.train.max_unreadable_images)
    for dataset in datasets.get("test", ()):
        _check_test(dataset)


def check_classes(cfg: DictConfig, model: nn.Module, parts: Iterable[str]) -> None:
    """Check that the model has at least as many classes as the data sets.

    Raises:
        InputError: if it has fewer. More are allowed, with a warning.
    """
    for dataset in [dataset for part in parts for dataset in datasets_of(cfg, part)]:
        wanted = len(dataset.classes)
        if wanted > model.num_classes:
            raise InputError(
                f"The data set {dataset.title} has {wanted} classes, the model "
                f"{model.num_classes}: set model.num_classes={wanted}."
            )
        if wanted and wanted < model.num_classes:
            logger.warning(
                f"The data set {dataset.title} has {wanted} classes, the model "
                f"{model.num_classes}: the others are not evaluated; model.num_classes={wanted} "
                "removes them."
            )


def prepare_training_records(cfg: DictConfig, records: list[dict]) -> list[dict]:
    """The records to train on; logs what was changed and left out.

    Args:
        records: those of ``cfg.dataloader.train.dataset``. Images without boxes are kept (its
            ``filter_empty`` removes them).

    Raises:
        InputError: see :func:`check_datasets`.
    """
    datasets = datasets_of(cfg, "train")
    _check_train(datasets, cfg.train.max_unreadable_images)
    report = _merged_report(datasets)
    missing = {file_name for dataset in datasets for file_name in dataset.missing_images}
    kept = []
    for record in records:
        if record["file_name"] in missing:
            continue
        objects = []
        for annotation in record.get("annotations", ()):
            if annotation.get("iscrowd"):
                report.add(CROWDS, f"{annotation['bbox']} in {record['file_name']}")
            else:
                objects.append(annotation)
        if not objects:
            report.add(EMPTY, record["file_name"])
        kept.append({**record, "annotations": objects})
    _log_report("training", datasets, kept, report)
    return kept


def check_test_records(cfg: DictConfig) -> None:
    """Check the data for evaluation and log a report.

    Raises:
        InputError: see :func:`check_datasets`.
    """
    for dataset in datasets_of(cfg, "test"):
        _check_test(dataset)
        report = _merged_report([dataset])
        for record in dataset.records:
            annotations = record.get("annotations", ())
            for annotation in annotations:
                if annotation["iscrowd"]:
                    report.add(IGNORED, f"{annotation['bbox']} in {record['file_name']}")
            if not annotations:
                report.add(EMPTY, record["file_name"])
        _log_report(f"evaluation ({dataset.name})", [dataset], dataset.records, report)
        if any(r.get("annotations") for r in dataset.records) and not _objects(dataset.records):
            logger.warning(
                f"{dataset.title} has crowd regions only: all of COCO's metrics will be NaN."
            )


def _objects(records: list[dict]) -> int:
    """Number of boxes without crowd regions."""
    return sum(not a["iscrowd"] for record in records for a in record.get("annotations", ()))


def _log_report(
    use: str, datasets: list[CheckedDataset], records: list[dict], report: ValidationReport
):
    title = f"Data for {use}: {len(records)} images with {_objects(records)} boxes."
    logger.info("\n  ".join([title, *str(report).splitlines()]))
    for dataset in datasets:
        for sentence in dataset.warnings:
            logger.warning(sentence)


def _check_files(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    for attribute, exists in (("json_file", os.path.isfile), ("image_root", os.path.isdir)):
        path = metadata.get(attribute)
        if path is not None and "://" not in path and not exists(path):
            raise InputError(
                f"The data set {name!r} needs {os.path.abspath(path)}, which does not exist; "
                "set DETECTRON2_DATASETS to the folder of all data sets (default ./datasets)."
            )


def _check_train(datasets: list[CheckedDataset], max_missing: int) -> None:
    for dataset in datasets:
        if dataset.records and not any("annotations" in record for record in dataset.records):
            source = MetadataCatalog.get(dataset.name).get("json_file")
            named = f"annotations {source}" if source else f"records of {dataset.title}"
            raise InputError(f"The {named} have no list 'annotations', needed for training.")
    report = _merged_report(datasets)
    images = sum(len(data.records) + data.report.count(MISSING) for data in datasets)
    missing = report.count(MISSING)
    if missing and (missing > max_missing or missing >= images):
        raise InputError(
            f"Of the {images} images of the training data, {missing} do not exist, the first is "
            f"{report.first(MISSING)}; train.max_unreadable_images allows {max_missing}. Is the "
            "image folder the right one?"
        )
    if not images:
        raise InputError("The training data has no images.")
    if not any(_objects(dataset.records) for dataset in datasets):
        raise InputError("The training data has no box to train on.")


def _merged_report(datasets: list[CheckedDataset]) -> ValidationReport:
    report = ValidationReport()
    for dataset in datasets:
        report.extend(dataset.report)
        for file_name in dataset.missing_images:
            report.add(MISSING, file_name)
    return report


def _check_test(dataset: CheckedDataset) -> None:
    missing = dataset.report.count(MISSING)
    unusable = dataset.unusable_images
    if missing or unusable:
        first = dataset.report.first(MISSING) if missing else unusable[0]
        raise InputError(
            f"{missing + len(unusable)} images of the data set {dataset.title} do not exist or "
            f"cannot be used, the first: {first.rstrip('.')}. An evaluation needs all of them."
        )
    if not dataset.records:
        raise InputError(f"The data set {dataset.title} has no images to evaluate on.")
    counts = Counter(record["image_id"] for record in dataset.records)
    twice = [repr(number) for number, count in counts.items() if count > 1]
    if twice:
        raise InputError(
            f"The data set {dataset.title} uses an image_id more than once: {listed(twice)}."
        )
    annotated = any("annotations" in record for record in dataset.records)
    if annotated and not any(record["annotations"] for record in dataset.records):
        raise InputError(f"The annotations of {dataset.title} have no valid box to evaluate with.")


def _check_same_classes(first: CheckedDataset, second: CheckedDataset) -> None:
    """Require equal class names, with equal ids if both data sets have ids."""
    ids = [MetadataCatalog.get(data.name).get(_ID_MAP) for data in (first, second)]
    names = [dict(enumerate(data.classes)) for data in (first, second)]
    if not all(names):
        # a data set of images without annotations
        return
    if all(ids):
        names = [{k: name.get(i) for k, i in m.items()} for m, name in zip(ids, names)]
    one, other = names
    differing = [
        f"{number} is {one.get(number, 'missing')!r} and {other.get(number, 'missing')!r}"
        for number in {**one, **other}
        if one.get(number) != other.get(number)
    ]
    if differing:
        raise InputError(
            f"The categories of {_source(first)} and {_source(second)} differ: id "
            f"{listed(differing)}; give both the same."
        )


def _source(dataset: CheckedDataset) -> str:
    return MetadataCatalog.get(dataset.name).get("json_file") or repr(dataset.name)
