"""The part of a config that checkpoints store, and how it is read without running code.

It is plain data, without references: a ``_target_`` is the name of a class or function, and a class
as a value is a mapping with the one key ``_name_``.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.data import transforms as T
from omegaconf import DictConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from dab_detr.config import target_of
from dab_detr.errors import InputError, one_line
from dab_detr.moved import current_name
from dab_detr.yaml_config import locate_in

_NAME = "_name_"
# A stored config may name the modules (nn.Module) that are defined in these, and the functions.
_MODULES = (
    "dab_detr.modeling",
    "detectron2.layers",
    "detectron2.modeling.backbone",
    "torch.nn.modules",
)
_FUNCTIONS = (
    "dab_detr.modeling.backbone.dc5.make_dc5_stages",
    "detectron2.modeling.backbone.resnet.ResNet.make_default_stages",
    "detectron2.modeling.backbone.resnet.ResNet.make_stage",
)
# arguments with which timm would read another file than the checkpoint
_TIMM = "dab_detr.modeling.backbone.timm.TimmBackbone"
_TIMM_FILES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")

logger = logging.getLogger(__name__)


def settings_to_store(cfg: DictConfig) -> dict[str, Any]:
    """What a checkpoint says of the config that it was trained with.

    Args:
        cfg: a whole config.

    Returns:
        Entries of the description, see :mod:`dab_detr.checkpoint.description`. ``model_config`` is
        left out, with a warning, if the model's config has other values than plain data and names.
    """
    settings = input_settings(cfg)
    try:
        model = OmegaConf.to_container(
            cfg.model, resolve=True, structured_config_mode=SCMode.INSTANTIATE
        )
        settings["model_config"] = _plain(model, "model")
    except (ValueError, OmegaConfBaseException) as error:
        reason = one_line(error, with_type=False)
        logger.warning(
            f"The checkpoints will not contain the model's config ({reason}): keep the config, "
            "which is needed to use them."
        )
    return settings


def input_settings(cfg: DictConfig) -> dict[str, Any]:
    """How a config's test data are read, or its training data if it has no others.

    Returns:
        ``image_format``, and ``resize``, see :mod:`dab_detr.checkpoint.description`; what is not
        known is left out.
    """
    for part in ("test", "train"):
        mapper = OmegaConf.select(cfg, f"dataloader.{part}.mapper")
        if isinstance(mapper, DictConfig):
            break
    else:
        return {}
    settings = {}
    if isinstance(mapper.get("image_format"), str):
        settings["image_format"] = mapper.image_format
    steps = list(mapper.get("augmentations") or ())
    resizing = [x for x in steps if isinstance(x, DictConfig) and _resizes(x)]
    # augmentations of training data are random
    if len(resizing) <= 1 and (part == "train" or len(resizing) == len(steps)):
        settings["resize"] = _resize_rule(resizing[0]) if resizing else None
    return settings


def _resizes(step: DictConfig) -> bool:
    return target_of(step) is T.ResizeShortestEdge


def _resize_rule(step: DictConfig) -> dict[str, int | None]:
    lengths = step.short_edge_length
    # of several lengths for training, the largest is the usual one for tests
    return {
        "short_edge": lengths if isinstance(lengths, int) else max(lengths),
        "max_size": step.get("max_size"),
    }


def _plain(value: Any, key: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(x, f"{key}.{index}") for index, x in enumerate(value)]
    if isinstance(value, dict):
        plain = {str(name): _plain(x, f"{key}.{name}") for name, x in value.items()}
        if not isinstance(value.get("_target_", ""), str):
            plain["_target_"] = plain["_target_"][_NAME]
        return plain
    return {_NAME: _name_of(value, key)}


def _name_of(value: Any, key: str) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<")
    if not callable(value) or not isinstance(module, str) or "<" in name:
        raise ValueError(f"{key} is {value!r}")
    return f"{module}.{name}"


def read_model_config(stored: Any, path: str) -> DictConfig:
    """The model's config of a checkpoint, in which nothing else is named than parts of models.

    Args:
        stored: ``model_config`` of the description. path: the checkpoint, for the message.

    Returns:
        A config with the section ``model`` only.

    Raises:
        InputError: if it names another class or function, or is no config.
    """
    try:
        content = _checked(stored)
        if not isinstance(content, dict) or "_target_" not in content:
            raise ValueError("it is not the config of a model")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"The config that the checkpoint {path} contains is refused: {error}; give the config "
            "of the model, such as the config.yaml of its training."
        ) from error
    return OmegaConf.create({"model": content}, flags={"allow_objects": True})


def _checked(value: Any) -> Any:
    if isinstance(value, list):
        return [_checked(x) for x in value]
    if isinstance(value, dict):
        if _NAME in value:
            return _located(value[_NAME])
        checked = {name: _checked(x) for name, x in value.items() if name != "_target_"}
        if not all(isinstance(name, str) for name in checked):
            raise ValueError("it has keys that are not text")
        if "_target_" in value:
            target = checked["_target_"] = _located(value["_target_"])
            if _full_name(target) == _TIMM:
                checked = {k: x for k, x in checked.items() if k not in _TIMM_FILES}
        return checked
    # ${...} could call a resolver
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"it contains the reference {value!r}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"it contains a {type(value).__name__}")


def _located(name: Any) -> Callable:
    found = locate_in(current_name(name), _MODULES)
    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    if found is None or not (is_module or _full_name(found) in _FUNCTIONS):
        raise ValueError(
            f"it names {name!r}, but only the modules of {', '.join(_MODULES)} are allowed"
        )
    return found


def _full_name(found: Any) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def with_num_classes(model_config: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """A stored config of a model for another number of classes."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: num_classes if k == "num_classes" else changed(x) for k, x in value.items()}
        return [changed(x) for x in value] if isinstance(value, list) else value

    return changed(dict(model_config))
