"""The EMA of the weights, which a training's checkpoint has beside the weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dab_detr.errors import InputError


class NoAverage(InputError):
    """A file without EMA weights."""


def average_of(checkpoint: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """The EMA weights, by the names of the weights under "model".

    Args:
        checkpoint: from :func:`dab_detr.checkpoint.reading.read_checkpoint`. path: its file.

    Raises:
        NoAverage: if it has none.
    """
    state: Any = checkpoint
    # where Detectron2 keeps the state of a hook; torch's AveragedModel holds the model as "module"
    for key in ("trainer", "hooks", "MovingAverage"):
        state = state.get(key) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping):
        raise NoAverage(
            f"{path} has no EMA weights; model_<iteration>.pth and model_final.pth of a training "
            "with train.ema.enabled=True have them."
        )
    prefix = "module."
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
