"""Loads a trained model, with what is needed to use it, from its checkpoint alone."""

import logging
import os
from typing import NamedTuple

import torch
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.addresses import locate
from dab_detr.checkpoint.description import config_of, description_of
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.config import build, copy_config, get_config
from dab_detr.errors import InputError
from dab_detr.modeling.meta_arch import DABDETR
from dab_detr.stored_config import input_settings, read_model_config

# of COCO's configs, where it is not known
RESIZE = {"short_edge": 800, "max_size": 1333}
IMAGE_FORMAT = "RGB"

logger = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """A model, and how its input and output are meant.

    Attributes:
        model: in evaluation mode, on its device.
        class_names: of the model's classes, "" for rows of the class head that are not used; None:
            not known.
        short_edge: pixels to which the shorter side of an image is resized; None: images are not
            resized.
        max_size: the most pixels of the longer side; None: any.
        image_format: of the images, such as "RGB".
    """

    model: DABDETR
    class_names: list[str] | None
    short_edge: int | None
    max_size: int | None
    image_format: str


def numbered_names(num_classes: int) -> list[str]:
    """Names of classes whose names are not known."""
    return [f"class {index}" for index in range(num_classes)]


def load_model(
    weights: str | os.PathLike,
    config: str | os.PathLike | DictConfig | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """The trained model alone; same arguments and errors as :func:`load`."""
    return load(weights, config, device).model


def load(
    weights: str | os.PathLike,
    config: str | os.PathLike | DictConfig | None = None,
    device: str | torch.device | None = None,
) -> LoadedModel:
    """Build a model and load its weights.

    Args:
        weights: a checkpoint in any layout that :class:`Checkpointer` reads, or the name of
            published weights, see :func:`~dab_detr.checkpoint.addresses.locate`. Code in it is not
            run.
        config: a config, or its name or file, see :func:`~dab_detr.config.get_config`. It takes
            precedence over what the checkpoint says, and is needed for checkpoints that do not
            contain the model's config: those of other programs and of earlier versions.
        device: None: a GPU if there is one.

    Raises:
        InputError: if the checkpoint or the config cannot be read, or do not fit each other, if the
            checkpoint does not contain a config and none is given, or for a device that there is
            not.
    """
    device = _device(device)
    located = locate(weights)
    path = located.path
    checkpoint = read_checkpoint(path)
    if config is None and located.published:
        config = located.published.config
    if config is None:
        settings = config_of(description_of(checkpoint, path))
        if "model_config" not in settings:
            raise InputError(
                f"The checkpoint {weights} does not say which model it is of: give the config, "
                "such as dab_detr_r50_50ep.py or the config.yaml of its training."
            )
        named = None
        cfg = read_model_config(settings["model_config"], path)
    else:
        cfg = copy_config(config) if isinstance(config, DictConfig) else get_config(config)
        if "model" not in cfg:
            raise InputError(f"The config {config} has no section 'model'.")
        settings, named = input_settings(cfg), _names_of_data(cfg)
    model = build(cfg, "model")
    if not isinstance(model, DABDETR):
        raise InputError(
            f"The config's section model builds a {type(model).__name__}; a DABDETR is needed."
        )
    class_names = Checkpointer(model, complete=True).load_content(checkpoint, located)
    if "resize" not in settings:
        logger.warning(
            f"It is not known how images are resized for {weights}: to a shorter side of "
            f"{RESIZE['short_edge']} and a longer one of at most {RESIZE['max_size']} pixels."
        )
    resize = settings.get("resize", RESIZE) or {"short_edge": None, "max_size": None}
    return LoadedModel(
        model=model.eval().to(device),
        class_names=class_names or named,
        image_format=settings.get("image_format", IMAGE_FORMAT),
        **resize,
    )


def _names_of_data(cfg: DictConfig) -> list[str] | None:
    """Class names that a data set of the config is registered with; no file is read."""
    for part in ("test", "train"):
        names = OmegaConf.select(cfg, f"dataloader.{part}.dataset.names") or ()
        for name in [names] if isinstance(names, str) else names:
            classes = MetadataCatalog.get(name).get("thing_classes")
            if classes and len(classes) == cfg.model.get("num_classes"):
                return list(classes)
    return None


def _device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"There is no device {name!r}; choose cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"The device is {name!r}, but PyTorch sees no GPU; choose cpu.")
    return device
