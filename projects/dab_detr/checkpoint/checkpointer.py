"""Detectron2's checkpointer, for every layout of a DAB-DETR, and strict about what does not fit."""

import logging
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from dab_detr.checkpoint.conversion import CLASS_WEIGHT, fit_classes, to_dab_detr
from dab_detr.checkpoint.layouts import recognise
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.errors import InputError

_NAMED = 3


class Checkpointer(DetectionCheckpointer):
    """Recognises the layout of a file by itself and refuses what does not fit.

    Reads this project's, the published, detrex's and transformers' DAB-DETR, torchvision's ResNet,
    and what Detectron2's checkpointer reads. Pickled code is never run.

    Args:
        model, save_dir, **checkpointables: as in :class:`DetectionCheckpointer`.
        complete: the file has to fill the whole model, as for an evaluation. Otherwise it may also
            hold the backbone alone, as ImageNet weights do, or another number of classes, for which
            the class head starts anew.

    Raises:
        InputError: on loading, if the file is missing, cannot be read or does not fit.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", *, complete: bool, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete
        self.logger = logging.getLogger(__name__)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file or an address that Detectron2's path manager knows; '' loads nothing."""
        if path and "://" in path:
            try:
                path = self.path_manager.get_local_path(path)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                raise InputError(
                    f"The checkpoint {path} cannot be downloaded ({reason}); give a local file "
                    "with train.init_checkpoint=FILE, or start from random weights with "
                    "train.init_checkpoint=''."
                ) from error
        elif path and not os.path.exists(path):
            raise InputError(f"There is no checkpoint file {path}.")
        self._path = path
        if path and os.path.isdir(path):
            # the classes above take files only
            checkpoint = self._load_file(path)
            self._load_model(checkpoint)
            return checkpoint
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        self._convert_ndarray_to_tensor(checkpoint["model"])
        layout = recognise(checkpoint["model"])
        if layout is not None:
            conversion = to_dab_detr(checkpoint["model"])
            checkpoint["model"] = conversion.state
            for line in conversion.report().splitlines():
                self.logger.info(line)
        elif not any(name.startswith("backbone.") for name in checkpoint["model"]):
            # a backbone alone, in Detectron2's names or close to them
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: Any):
        state = checkpoint["model"]
        expected = self.model.state_dict()
        if (
            CLASS_WEIGHT in state
            and state[CLASS_WEIGHT].shape[1:] == expected[CLASS_WEIGHT].shape[1:]
        ):
            self._fit_classes(state, len(expected[CLASS_WEIGHT]))
        given = set(state)
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes:
            name, found, wanted = incompatible.incorrect_shapes[0]
            raise InputError(
                f"The checkpoint {self._path} does not fit the model: {name} is {tuple(found)} in "
                f"the file and {tuple(wanted)} in the model"
                f"{_and_more(len(incompatible.incorrect_shapes) - 1)}."
            )
        missing = list(incompatible.missing_keys)
        if len(missing) == len(expected):
            raise InputError(
                f"The checkpoint {self._path} has nothing in common with the model; it holds "
                f"{_listed(sorted(given))}."
            )
        filled = [key for key in expected if key not in missing]
        backbone_alone = all(key.startswith("backbone.") for key in filled)
        if missing and (self.complete or not backbone_alone):
            raise InputError(
                f"The checkpoint {self._path} does not fit the model: it lacks {_listed(missing)}."
            )
        fresh = [key for key in missing if key.startswith("backbone.")]
        if fresh:
            # necks such as an FPN are not part of pre-trained weights
            self.logger.warning(f"These start from random weights: {_listed(fresh)}.")
        unused = incompatible.unexpected_keys
        if unused and self.complete:
            raise InputError(
                f"The checkpoint {self._path} does not fit the model, which has no "
                f"{_listed(unused)}."
            )
        return incompatible

    def _fit_classes(self, state: dict, num_classes: int) -> None:
        present = len(state[CLASS_WEIGHT])
        if self.complete and present != num_classes and (present, num_classes) != (91, 80):
            raise InputError(
                f"The checkpoint {self._path} does not fit the model: it has {present} classes, "
                f"the model {num_classes}."
            )
        note = fit_classes(state, num_classes)
        if note:
            self.logger.warning(note)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + _and_more(len(names) - _NAMED)


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
