"""The EMA of the weights, which a training's checkpoint has beside the weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dab_detr.errors import InputError

# the hook's class name, now and in earlier versions
_HOOKS = ("EMAHook", "MovingAverage")


class NoAverage(InputError):
    """A file without EMA weights."""


def average_of(checkpoint: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """The EMA weights, by the names of the weights under "model".

    Args:
        checkpoint: from :func:`dab_detr.checkpoint.reading.read_checkpoint`. path: its file.

    Raises:
        NoAverage: if it has none.
    """
    hooks: Any = checkpoint
    # Detectron2 saves the state of hooks there, by class name
    for key in ("trainer", "hooks"):
        hooks = hooks.get(key) if isinstance(hooks, Mapping) else None
    found = [hooks[name] for name in _HOOKS if name in hooks] if isinstance(hooks, Mapping) else []
    # torch's AveragedModel has the model as "module"
    state = found[0] if found else None
    if not isinstance(state, Mapping):
        raise NoAverage(
            f"{path} has no EMA weights; model_<iteration>.pth and model_final.pth of a training "
            "with train.ema.enabled=True have them."
        )
    prefix = "module."
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
