"""The data sets of a training: one's own by the command line, and checks before anything starts."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig
from torch import nn

from dab_detr.data.annotations import (
    MISSING,
    Findings,
    check_same_categories,
    clean_records,
    coco_records,
    contiguous_ids,
    read_coco,
    write_ground_truth,
)
from dab_detr.errors import InputError

logger = logging.getLogger(__name__)

OWN_TRAIN = "own_train"
OWN_VAL = "own_val"


def use_own_data(
    cfg: DictConfig,
    train: tuple[str, str] | None,
    val: tuple[str, str] | None,
    *,
    set_classes: bool,
) -> None:
    """Make a config train and evaluate on files in COCO's format.

    Registers them with Detectron2 as "own_train" and "own_val". What is evaluated against is a
    mended copy of the annotations, see :func:`write_ground_truth`, in ``train.output_dir``.

    Args:
        cfg: is changed: data sets and, if ``set_classes``, ``model.num_classes``.
        train, val: a folder of images and an annotation file each; None leaves the config's.

    Raises:
        InputError: if a folder or file is missing or wrong.
    """
    contents = {}
    for name, given in ((OWN_TRAIN, train), (OWN_VAL, val)):
        if given is None:
            continue
        folder, annotations = given
        if not os.path.isdir(folder):
            raise InputError(f"There is no folder of images {folder}.")
        if not os.path.isfile(annotations):
            raise InputError(f"There is no annotation file {annotations}.")
        contents[name] = read_coco(annotations)
        if set_classes:
            cfg.model.num_classes = len(contents[name]["categories"])
    if len(contents) == 2:
        check_same_categories(train[1], contents[OWN_TRAIN], val[1], contents[OWN_VAL])
    for name in contents:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    if train is not None:
        _register(OWN_TRAIN, contents[OWN_TRAIN], train[0])
        cfg.dataloader.train.dataset.names = OWN_TRAIN
    if val is not None:
        ground_truth = Path(cfg.train.output_dir) / f"{OWN_VAL}.json"
        # one process a machine, told by torchrun or, later, by the group of processes; the others
        # find the file when they come to evaluate
        if os.environ.get("LOCAL_RANK", "0") == "0" and comm.get_local_rank() == 0:
            write_ground_truth(contents[OWN_VAL], ground_truth)
        _register(OWN_VAL, contents[OWN_VAL], val[0], json_file=str(ground_truth))
        cfg.dataloader.test.dataset.names = OWN_VAL
        if "dataset_name" in cfg.dataloader.evaluator:
            cfg.dataloader.evaluator.dataset_name = OWN_VAL


def _register(name: str, content: dict, folder: str, **metadata: str) -> None:
    classes = contiguous_ids(content)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    DatasetCatalog.register(name, lambda: coco_records(content, folder))
    MetadataCatalog.get(name).set(
        image_root=folder,
        evaluator_type="coco",
        thing_classes=[names[number] for number in classes],
        thing_dataset_id_to_contiguous_id=classes,
        **metadata,
    )


def check_datasets(cfg: DictConfig, parts: Iterable[str]) -> None:
    """See that the data sets of ``cfg.dataloader`` are registered, and their files there and right.

    Args:
        cfg: a config with ``dataloader.<part>.dataset.names``.
        parts: of ``train`` and ``test`` those that will be used.

    Raises:
        InputError: naming the data set and the file or the names there are.
    """
    contents = {}
    for part in parts:
        for name in dataset_names(cfg, part):
            if name in (OWN_TRAIN, OWN_VAL):
                # seen before they were registered
                continue
            _check_dataset(name)
            metadata = MetadataCatalog.get(name)
            path = metadata.get("json_file")
            if path and metadata.get("evaluator_type") == "coco":
                contents[part] = path, read_coco(path, annotated=part == "train")
                if part == "test":
                    _check_evaluable(path, contents[part][1])
    if len(contents) == 2:
        check_same_categories(*contents["train"], *contents["test"])


def _check_evaluable(path: str, content: dict) -> None:
    """pycocotools, which evaluates a registered data set's own file, needs more than a training."""
    for annotation in content.get("annotations", ()):
        missing = [name for name in ("area", "iscrowd") if name not in annotation]
        if missing:
            raise InputError(
                f"The annotations {path} lack {' and '.join(missing)} (annotation "
                f"{annotation['id']}), which COCO's evaluation needs: add them, or give the data "
                "with --val-data, which does."
            )


def dataset_names(cfg: DictConfig, part: str) -> list[str]:
    """The names in ``dataloader.<part>.dataset``: one or a list of them."""
    names = cfg.dataloader[part].dataset.names
    return list(names) if isinstance(names, (list, tuple, ListConfig)) else [names]


def class_names(cfg: DictConfig, part: str, model: nn.Module) -> list[str] | None:
    """Names of the model's classes in the order of its outputs, where the data of a part tell."""
    for name in dataset_names(cfg, part):
        names = MetadataCatalog.get(name).get("thing_classes", ())
        if len(names) == model.num_classes:
            return list(names)
    return None


def check_classes(cfg: DictConfig, model: nn.Module) -> None:
    """See that the model has a class for each of the training data's, which have been loaded.

    Raises:
        InputError: if it has fewer. More are allowed and reported.
    """
    for name in dataset_names(cfg, "train"):
        wanted = len(MetadataCatalog.get(name).get("thing_classes", ()))
        if wanted > model.num_classes:
            raise InputError(
                f"The data set {name!r} has {wanted} classes, the model {model.num_classes}: set "
                f"model.num_classes={wanted}."
            )
        if wanted and wanted < model.num_classes:
            logger.warning(
                f"The data set {name!r} has {wanted} classes, the model {model.num_classes}."
            )


def prepare_training_records(records: list[dict], *, max_missing: int) -> list[dict]:
    """Mend the loaded records of the training data, and report what was mended.

    Args:
        records: in Detectron2's standard format.
        max_missing: so many images may be missing.

    Raises:
        InputError: if there are no records, no boxes, or more images are missing.
    """
    cleaned, findings = clean_records(records)
    boxes = sum(len(record.get("annotations", ())) for record in cleaned)
    _report("training", len(cleaned), boxes, findings)
    missing = findings.count(MISSING)
    if missing and (missing > max_missing or not cleaned):
        raise InputError(
            f"Of the {len(records)} images of the training data {missing} do not exist, the first "
            f"is {findings.first(MISSING)}; train.max_unreadable_images allows {max_missing}. Is "
            "the folder of images the right one?"
        )
    if not cleaned:
        raise InputError("The training data has no images.")
    if not boxes:
        raise InputError("The training data has no box that can be learnt from.")
    return cleaned


def check_test_records(cfg: DictConfig) -> None:
    """Report on the data that is evaluated on, which has been registered.

    Raises:
        InputError: if an image is missing: its objects would count as not found.
    """
    for name in dataset_names(cfg, "test"):
        try:
            records = DatasetCatalog.get(name)
        except (OSError, ImportError, LookupError, ValueError, AssertionError) as error:
            raise InputError(
                f"The data set {name!r} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        cleaned, findings = clean_records(records)
        boxes = sum(len(record.get("annotations", ())) for record in cleaned)
        _report(f"evaluation ({name})", len(cleaned), boxes, findings)
        if findings.count(MISSING):
            raise InputError(
                f"{findings.count(MISSING)} images of the data set {name!r} do not exist, the "
                f"first is {findings.first(MISSING)}; an evaluation needs all of them."
            )


def _report(use: str, images: int, boxes: int, findings: Findings) -> None:
    lines = [f"Data for {use}: {images} images with {boxes} boxes.", *str(findings).splitlines()]
    logger.info("\n  ".join(lines))


def _check_dataset(name: str) -> None:
    if name not in DatasetCatalog:
        registered = ", ".join(sorted(DatasetCatalog.list()))
        raise InputError(f"There is no data set {name!r}; registered are {registered}.")
    metadata = MetadataCatalog.get(name)
    for attribute, exists in (("json_file", os.path.isfile), ("image_root", os.path.isdir)):
        path = metadata.get(attribute)
        if path is not None and "://" not in path and not exists(path):
            raise InputError(
                f"The data set {name!r} needs {os.path.abspath(path)}, which does not exist; "
                "DETECTRON2_DATASETS names the folder of all data sets (default ./datasets)."
            )
