"""The ranges of all numbers in a config, in one table."""

import math
import re
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from dab_detr.errors import InputError


class Range(NamedTuple):
    """Finite numbers from ``low`` to ``high``.

    Attributes:
        whole: integers only. open_low, open_high: without the bound itself. optional: or null.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    open_low: bool = False
    open_high: bool = False
    optional: bool = False

    def has(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        words = "a whole number" if self.whole else "a finite number"
        if self.low > -math.inf:
            words += f" above {self.low}" if self.open_low else f" from {self.low}"
        if self.high < math.inf:
            words += f" to {'below ' if self.open_high else ''}{self.high}"
        return words + (" or null" if self.optional else "")


_COUNT = Range(1, whole=True)
_COUNT_OR_NONE = Range(0, whole=True)
_OPTIONAL_COUNT = Range(1, whole=True, optional=True)
_POSITIVE = Range(0, open_low=True)
_NOT_NEGATIVE = Range(0)
_SHARE = Range(0, 1)
_LESS_THAN_ALL = Range(0, 1, open_high=True)

# Regular expressions for full keys without list indices; the first match is used.
_RANGES = {
    r"model\.(num_classes|num_select)": _COUNT,
    r"model\.transformer\.queries\.num_patterns": _COUNT_OR_NONE,
    # also arguments of any query formulation with these names
    r"model\.transformer\.(\w+\.)?(num_\w+|d_model|ffn_dim)": _COUNT,
    r"model\.transformer\.(\w+\.)?dropout": _LESS_THAN_ALL,
    r"model\.transformer\.(\w+\.)?(key_)?temperature": _POSITIVE,
    r"model\.transformer\.queries\.query_dim": Range(2, 4, whole=True),
    r"model\.pixel_mean": Range(),
    r"model\.pixel_std": _POSITIVE,
    r"model\.criterion\.(matcher\.)?(class|bbox|giou)_weight": _NOT_NEGATIVE,
    r"model\.criterion\.(matcher\.)?focal_alpha": _SHARE,
    r"model\.criterion\.(matcher\.)?focal_gamma": _NOT_NEGATIVE,
    # arguments of any backbone, by their usual names in Detectron2 and timm
    r"model\.backbone\..*drop(out|_path|_path_rate|_rate)?": _LESS_THAN_ALL,
    r"model\.backbone\..*(freeze_at|window_size|frozen_stages)": _COUNT_OR_NONE,
    r"model\.backbone\..*(channels|dim|depths?|num_blocks|num_heads|num_groups|width|size)": (
        _OPTIONAL_COUNT
    ),
    r"model\.backbone\..*(strides?|stride_per_block|dilation)": _OPTIONAL_COUNT,
    r"model\.backbone\..*(scale_factors|w_0|w_a|w_m)": _POSITIVE,
    r"train\.(accumulate|log_period)": _COUNT,
    r"train\.(max_iter|eval_period|checkpointer\.(period|max_to_keep))": _OPTIONAL_COUNT,
    r"train\.epochs": Range(0, open_low=True, optional=True),
    # the range of NumPy's seeds, minus room for the rank
    r"train\.seed": Range(high=2**31 - 1, whole=True),
    r"train\.auto_scale_lr\.base_batch_size": _COUNT,
    r"train\.clip_grad\.max_norm": _NOT_NEGATIVE,
    r"train\.ema\.decay": _LESS_THAN_ALL,
    r"train\.max_(unreadable_images|nonfinite_steps)": _COUNT_OR_NONE,
    r"train\.pictures\.(count|tensorboard)": _COUNT_OR_NONE,
    r"train\.pictures\.score_threshold": _SHARE,
    r"train\.ddp\.bucket_cap_mb": _POSITIVE,
    r"optimizer\.(params\.)?(lr|base_lr|weight_decay\w*|bias_lr_factor)": _NOT_NEGATIVE,
    r"optimizer\.(params\.lr_factor_func\.factor|eps)": _NOT_NEGATIVE,
    r"optimizer\.(betas|momentum|alpha)": _LESS_THAN_ALL,
    r"dataloader\.(train|test)\.num_workers": _COUNT_OR_NONE,
    r"dataloader\.train\.total_batch_size": _COUNT,
    r"dataloader\.test\.batch_size": _COUNT,
    r"dataloader\..*prob": _SHARE,
    # a fraction of the whole training
    r"lr_multiplier\..*warmup_length": _SHARE,
    r"lr_multiplier\..*(warmup_factor|values)": _NOT_NEGATIVE,
    r"lr_multiplier\..*milestones": _NOT_NEGATIVE,
}


def range_of(key: str) -> Range | None:
    """The range of a key, e.g. ``model.pixel_std.0``; None if there is no rule."""
    name = re.sub(r"\.\d+(?=\.|$)", "", key)
    return next((x for pattern, x in _RANGES.items() if re.fullmatch(pattern, name)), None)


def check_ranges(cfg: DictConfig) -> None:
    """Check the ranges of all numbers in a config, and that related numbers are consistent.

    Raises:
        InputError: naming the key and its range.
    """
    for section in ("model", "train", "optimizer", "dataloader", "lr_multiplier"):
        for key, value in leaves(cfg, section):
            expected = range_of(key)
            if expected is None:
                # an argument without a rule can still be NaN
                wrong = isinstance(value, float) and math.isnan(value)
            else:
                wrong = not expected.has(value)
            if wrong:
                raise InputError(f"{key} is {value!r}; {expected or 'a number'} is needed.")
    _check_model(cfg)


def leaves(cfg: DictConfig, section: str) -> list[tuple[str, object]]:
    """All values of a section with their full keys; keys of list entries end with the index.

    References to other keys are left out, as their targets are checked themselves.
    """
    found: list[tuple[str, object]] = []

    def visit(key: str, node: object) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                visit(f"{key}.{name}", value)
        elif isinstance(node, list | tuple) and node:
            for index, value in enumerate(node):
                visit(f"{key}.{index}", value)
        elif not (isinstance(node, str) and "${" in node):
            found.append((key, node))

    visit(section, OmegaConf.to_container(cfg[section], resolve=False))
    return found


def _check_model(cfg: DictConfig) -> None:
    model = cfg.model
    width = OmegaConf.select(model, "transformer.d_model")
    if width is not None and width % 4:
        raise InputError(f"model.transformer.d_model is {width}; a multiple of 4 is needed.")
    for part in ("encoder", "queries", "decoder"):
        heads = OmegaConf.select(model, f"transformer.{part}.num_heads")
        if width is not None and heads is not None and width % heads:
            raise InputError(
                f"model.transformer.d_model is {width}; a multiple of "
                f"model.transformer.{part}.num_heads, {heads}, is needed."
            )
    mean, std = (model.get(name) for name in ("pixel_mean", "pixel_std"))
    if mean is None or std is None:
        return
    for name, value in (("pixel_mean", mean), ("pixel_std", std)):
        if not OmegaConf.is_list(value) or not value:
            raise InputError(
                f"model.{name} is {value!r}; a list with one number per channel is needed."
            )
    if len(mean) != len(std):
        raise InputError(
            f"model.pixel_mean has {len(mean)} channels, model.pixel_std {len(std)}; both need one "
            "number per channel."
        )
    for stem in ("backbone.stem", "backbone.bottom_up.stem"):
        channels = OmegaConf.select(model, f"{stem}.in_channels")
        if channels is not None and channels != len(mean):
            raise InputError(
                f"model.pixel_mean has {len(mean)} channels, but model.{stem}.in_channels is "
                f"{channels}."
            )
