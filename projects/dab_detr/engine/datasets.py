"""Checks on the data sets that a config names, before anything slow starts."""

import os
from collections.abc import Iterable

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, ListConfig

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
        names = cfg.dataloader[part].dataset.names
        for name in names if isinstance(names, (list, tuple, ListConfig)) else [names]:
            _check_dataset(name)


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
