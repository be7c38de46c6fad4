"""The moving average of the weights, which a training's checkpoint holds beside the weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dab_detr.errors import InputError


class NoAverage(InputError):
    """A file without averaged weights."""


def average_of(checkpoint: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """The averaged weights, by the names that the weights have under "model".

    Args:
        checkpoint: from :func:`dab_detr.checkpoint.reading.read_checkpoint`. path: its file.

    Raises:
        NoAverage: if it holds none.
    """
    state: Any = checkpoint
    # where Detectron2 keeps the state of a hook; torch's AveragedModel holds the model as "module"
    for key in ("trainer", "hooks", "MovingAverage"):
        state = state.get(key) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping):
        raise NoAverage(
            f"{path} holds no averaged weights: the checkpoints model_<iteration>.pth and "
            "model_final.pth of a training with train.ema.enabled=True do."
        )
    prefix = "module."
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
