"""Checks on the data sets that a config names, before anything slow starts."""

import logging
import os
from collections.abc import Iterable

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, ListConfig
from torch import nn

from dab_detr.errors import InputError


def check_datasets(cfg: DictConfig, parts: Iterable[str]) -> None:
    """See that the data sets of ``cfg.dataloader`` are registered and their files there.

    Args:
        cfg: a config with ``dataloader.<part>.dataset.names``.
        parts: of ``train`` and ``test`` those that will be used.

    Raises:
        InputError: naming the data set and the file or the names there are.
    """
    for part in parts:
        for name in _names(cfg, part):
            _check_dataset(name)


def check_classes(cfg: DictConfig, model: nn.Module) -> None:
    """See that the model has a class for each of the training data's, which have been loaded.

    Raises:
        InputError: if it has fewer. More are allowed and reported.
    """
    for name in _names(cfg, "train"):
        wanted = len(MetadataCatalog.get(name).get("thing_classes", ()))
        if wanted > model.num_classes:
            raise InputError(
                f"The data set {name!r} has {wanted} classes, the model {model.num_classes}: set "
                f"model.num_classes={wanted}."
            )
        if wanted and wanted < model.num_classes:
            logging.getLogger(__name__).warning(
                f"The data set {name!r} has {wanted} classes, the model {model.num_classes}."
            )


def check_first_image(records: list[dict]) -> None:
    """See that the data is there: annotations of other images are told by the first one.

    Raises:
        InputError: if there are no records or the first one's file does not exist.
    """
    if not records:
        raise InputError("The training data has no images.")
    file_name = records[0].get("file_name")
    if file_name and "://" not in file_name and not os.path.isfile(file_name):
        raise InputError(f"The annotations name the image {file_name}, which does not exist.")


def _names(cfg: DictConfig, part: str) -> list[str]:
    names = cfg.dataloader[part].dataset.names
    return list(names) if isinstance(names, (list, tuple, ListConfig)) else [names]


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
