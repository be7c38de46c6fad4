"""Detectron2's checkpointer, for a user who wants to hear when something does not fit."""

import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from dab_detr.errors import InputError

_NAMED = 3


class Checkpointer(DetectionCheckpointer):
    """Loads what Detectron2's checkpointer loads and refuses what does not fit.

    Args:
        model, save_dir, **checkpointables: as in :class:`DetectionCheckpointer`.
        complete: the file has to fill the whole model, as for an evaluation. Otherwise it may also
            hold the backbone alone, as ImageNet weights do.

    Raises:
        InputError: on loading, if the file is missing, cannot be read or does not fit.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, complete: bool, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file or an address that Detectron2's path manager knows; '' loads nothing."""
        try:
            return super().load(path, *args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if "://" in path:
                raise InputError(
                    f"The checkpoint {path} cannot be downloaded or read ({reason}); give a local "
                    "file with train.init_checkpoint=FILE, or start from random weights with "
                    "train.init_checkpoint=''."
                ) from error
            if not os.path.isfile(path):
                raise InputError(f"There is no checkpoint file {path}.") from error
            raise InputError(f"The checkpoint {path} cannot be read ({reason}).") from error

    def _load_model(self, checkpoint: Any):
        path = self.path_manager.get_local_path(self._parsed_url_during_load.path)
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes:
            name, found, expected = incompatible.incorrect_shapes[0]
            raise InputError(
                f"The checkpoint {path} does not fit the model: {name} is {tuple(found)} in the "
                f"file and {tuple(expected)} in the model"
                f"{_and_more(len(incompatible.incorrect_shapes) - 1)}."
            )
        missing = list(incompatible.missing_keys)
        needed = [key for key in missing if self.complete or key.startswith("backbone.")]
        if needed:
            names = ", ".join(needed[:_NAMED])
            raise InputError(
                f"The checkpoint {path} does not fit the model: it lacks {names}"
                f"{_and_more(len(needed) - _NAMED)}."
            )
        return incompatible


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
