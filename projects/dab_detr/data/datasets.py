"""The data sets of a config, and custom ones from the command line."""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from dab_detr.config import copy_config
from dab_detr.data.catalog import CheckedDataset, checked_dataset, use_checked_records
from dab_detr.errors import InputError

CUSTOM_TRAIN = "custom_train"
CUSTOM_VAL = "custom_val"


def register_custom_coco(
    cfg: DictConfig,
    train: tuple[str, str] | None,
    val: tuple[str, str] | None,
    *,
    set_classes: bool,
) -> DictConfig:
    """Register a custom data set in COCO's format, as "custom_train" and "custom_val".

    Args:
        cfg: a complete config; it is not changed.
        train, val: a folder of images and an annotation file each; None keeps the config's.
        set_classes: set the model's number of classes to that of the files.

    Returns:
        A copy of the config that uses them.

    Raises:
        InputError: if a folder or file is missing or wrong.
    """
    if val is not None and cfg.dataloader.get("test") is None:
        raise InputError("--val-data needs a dataloader.test in the config.")
    cfg = copy_config(cfg)
    for name, given in ((CUSTOM_TRAIN, train), (CUSTOM_VAL, val)):
        if given is None:
            continue
        folder, annotations = given
        if not os.path.isdir(folder):
            raise InputError(f"There is no image folder {folder}.")
        if not os.path.isfile(annotations):
            raise InputError(f"There is no annotation file {annotations}.")
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(name, {}, annotations, folder)
        if set_classes:
            cfg.model.num_classes = len(checked_dataset(name).classes)
    if train is not None:
        cfg.dataloader.train.dataset.names = CUSTOM_TRAIN
    if val is not None:
        cfg.dataloader.test.dataset.names = CUSTOM_VAL
    return cfg


def dataset_names(cfg: DictConfig, part: str) -> list[str]:
    """The names of data sets in ``dataloader.<part>.dataset``.

    The list is empty without that section, and for ``test`` without ``dataloader.evaluator``.

    Raises:
        InputError: if the section names no data sets.
    """
    needed = (part, "evaluator") if part == "test" else (part,)
    if not all(cfg.dataloader.get(section) for section in needed):
        return []
    names = OmegaConf.select(cfg, f"dataloader.{part}.dataset.names")
    if not names:
        raise InputError(
            f"dataloader.{part}.dataset has no names: set names=... to registered data sets, as "
            "for Detectron2's get_detection_dataset_dicts."
        )
    return list(names) if isinstance(names, (list, tuple, ListConfig)) else [names]


def datasets_of(cfg: DictConfig, part: str) -> list[CheckedDataset]:
    """The data sets of a part of the config, which are checked in Detectron2's catalog.

    Raises:
        InputError: if one is not registered.
    """
    return [checked_dataset(name) for name in dataset_names(cfg, part)]


def class_names(cfg: DictConfig, part: str, model: nn.Module) -> list[str] | None:
    """Names of the model's classes, from a data set with as many classes; None if there is none."""
    for dataset in datasets_of(cfg, part):
        if len(dataset.classes) == model.num_classes:
            return dataset.classes
    return None


def use_checked_data(cfg: DictConfig) -> None:
    """Replace the config's data sets in Detectron2's catalog by checked ones, for any loader;
    nothing is loaded yet."""
    for part in ("train", "test"):
        names = OmegaConf.select(cfg, f"dataloader.{part}.dataset.names", default=())
        use_checked_records([names] if isinstance(names, str) else names)
