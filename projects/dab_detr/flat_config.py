"""A model's settings by flat names, which are the keys of Detectron2's YAML configs.

Code that reads settings from elsewhere, such as a checkpoint's tensors, builds models by the same
names.
"""

import copy
import functools
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dab_detr.config import get_config
from dab_detr.moved import MOVED_KEYS

_LOSS = {
    "cost_class": ["criterion.matcher.class_weight"],
    "cost_bbox": ["criterion.matcher.bbox_weight"],
    "cost_giou": ["criterion.matcher.giou_weight"],
    "weight_class": ["criterion.class_weight"],
    "weight_bbox": ["criterion.bbox_weight"],
    "weight_giou": ["criterion.giou_weight"],
    "focal_alpha": ["criterion.focal_alpha", "criterion.matcher.focal_alpha"],
    "focal_gamma": ["criterion.focal_gamma", "criterion.matcher.focal_gamma"],
}
# flat name -> the keys of the model's config that it sets
PLACES = {
    "in_features": ["in_features"],
    "num_classes": ["num_classes"],
    "num_select": ["num_select"],
    **_LOSS,
    # the flat keys of version 0.1
    **{old.removeprefix("model."): [new.removeprefix("model.")] for old, new in MOVED_KEYS.items()},
}


@functools.cache
def _base() -> DictConfig:
    return get_config("models/dab_detr_r50.py").model


def model_config(**settings: Any) -> DictConfig:
    """The paper's R50 model as a LazyConfig, with other settings.

    Args:
        settings: by the names in :data:`PLACES`; those of the losses may be in a mapping ``loss``.

    Raises:
        KeyError: for an unknown name.
    """
    model = copy.deepcopy(_base())
    losses = settings.pop("loss", {})
    for name, value in {**settings, **{k.lower(): v for k, v in losses.items()}}.items():
        for place in PLACES[name]:
            OmegaConf.update(model, place, value)
    return model


def flat_settings() -> dict[str, Any]:
    """The paper's settings by flat name, with those of the losses in a mapping ``loss``."""
    model = _base()
    values = {name: OmegaConf.select(model, places[0]) for name, places in PLACES.items()}
    losses = {name: values.pop(name) for name in _LOSS}
    values["in_features"] = list(values["in_features"])
    return {**values, "loss": losses}
