"""Detectron2's checkpointer, for every layout of a DAB-DETR, and strict about what does not fit."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.modeling import ResNet
from torch import nn

from dab_detr.checkpoint.conversion import CLASS_WEIGHT, fit_classes, to_dab_detr
from dab_detr.checkpoint.layouts import recognise
from dab_detr.checkpoint.reading import DamagedCheckpoint, read_checkpoint
from dab_detr.errors import InputError, listed
from dab_detr.files import UNFINISHED, write_whole

# the best weights so far, which are no place to go on from
BEST_FILE = "model_best.pth"
# how a training names the checkpoints of its steps; whatever else lies there belongs to the user
_NUMBERED = re.compile(r"model_(\d{7})\.pth")
_OWN_NAME = re.compile(r"model_(\d{7}|final)\.pth")


class Checkpointer(DetectionCheckpointer):
    """Recognises the layout of a file by itself and refuses what does not fit.

    Reads this project's, the published, detrex's and transformers' DAB-DETR, torchvision's ResNet,
    and Detectron2's ``.pkl`` and ``.pth``. Pickled code is never run.

    Args:
        model, save_dir, **checkpointables: as in :class:`DetectionCheckpointer`.
        complete: the file has to fill the whole model, as for an evaluation. Otherwise it may also
            hold the backbone alone, as ImageNet weights do, or another number of classes, for which
            the class head starts anew.
        max_to_keep: so many checkpoints of steps stay in the folder, counted over all resumes; None
            keeps all. Only what the training itself has written is ever removed.

    Raises:
        InputError: on loading, if the file is missing, cannot be read or does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        complete: bool,
        max_to_keep: int | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete
        self.max_to_keep = max_to_keep
        self._written: set[int] = set()
        self.logger = logging.getLogger(__name__)

    def save(self, name: str, **extras: Any) -> None:
        """Write ``name.pth`` into the folder and mark it as the last checkpoint.

        The file is written aside and renamed, so whoever kills the process leaves a whole one.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict(), **extras}
        content |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        file_name = f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, file_name)}")
        for left_behind in Path(self.save_dir).glob(f".model_*{UNFINISHED}"):
            left_behind.unlink()
        write_whole(self._in_folder(file_name), lambda file: torch.save(content, file))
        self.tag_last_checkpoint(file_name)
        if number := _NUMBERED.fullmatch(file_name):
            self._written.add(int(number[1]))
        self._remove_old(extras.get("iteration", 0))

    def _remove_old(self, iteration: int) -> None:
        if self.max_to_keep is None:
            return
        files = {n: Path(self._in_folder(f"model_{n:07d}.pth")) for n in self._written}
        # after a resume from further back, what was written beyond is not part of the training
        oldest_first = sorted(
            (number for number, file in files.items() if file.exists()),
            key=lambda number: (number <= iteration, number),
        )
        for number in oldest_first[: -self.max_to_keep]:
            files[number].unlink(missing_ok=True)
            self._written.remove(number)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which file :meth:`resume` takes first."""
        tag = last_filename_basename.encode()
        write_whole(self._in_folder("last_checkpoint"), lambda file: file.write(tag))

    def resume(self, paths: Sequence[str] | None = None) -> str:
        """Load the last checkpoint of the folder, or the newest before it that is not damaged.

        Args:
            paths: what :meth:`checkpoints` has given; None looks again.

        Returns:
            The file.

        Raises:
            InputError: if all are damaged, or one does not fit.
        """
        damaged = []
        for path in self.checkpoints() if paths is None else paths:
            try:
                self.load(path)
            except DamagedCheckpoint as error:
                self.logger.warning(f"{error} Trying the checkpoint before it.")
                damaged.append(path)
            else:
                return path
        raise InputError(
            f"No checkpoint in {self.save_dir} can be read ({listed(damaged)}); start anew without "
            "--resume, in another train.output_dir."
        )

    def checkpoints(self) -> list[str]:
        """The training's checkpoints in the folder, the last one first, then by age.

        Weights alone are none: they lack the optimizer and the place in the training.
        """
        self._written = set()
        files, weights = [], []
        for file in Path(self.save_dir).glob("model_*.pth"):
            path = self._in_folder(file.name)
            if file.name != BEST_FILE:
                (files if self._is_of_training(path) else weights).append(path)
        if weights:
            self.logger.warning(
                "Weights without the state of a training are nothing to resume from "
                f"(train.init_checkpoint=FILE begins with them): {listed(sorted(weights))}."
            )
        files.sort(key=os.path.getmtime, reverse=True)
        last = self.get_checkpoint_file() if self.has_checkpoint() else None
        return sorted(files, key=lambda file: file != last)

    def _is_of_training(self, path: str) -> bool:
        name = os.path.basename(path)
        try:
            # the tensors stay on the disk
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        # whatever a damaged or foreign file makes of it
        except Exception:
            # one's own is damaged, which reading it will say
            return _OWN_NAME.fullmatch(name) is not None
        if not isinstance(content, dict) or not {"iteration", "trainer"} <= content.keys():
            return False
        if name == f"model_{content['iteration']:07d}.pth":
            self._written.add(content["iteration"])
        return True

    def _in_folder(self, file_name: str) -> str:
        return os.path.join(self.save_dir, file_name)

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
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # Detectron2 leaves it set when a file is refused, and then takes no other
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        state = {name.removeprefix("module."): x for name, x in checkpoint["model"].items()}
        layout = recognise(state)
        backbone_alone = layout is None or layout.backbone_alone
        # a ResNet of timm has torchvision's names, so they fit as they are
        if layout is not None and (not backbone_alone or self._has_resnet()):
            conversion = to_dab_detr(state)
            state = conversion.state
            for line in conversion.report().splitlines():
                self.logger.info(line)
        if layout is not None and backbone_alone:
            # the model may hold its ResNet deeper, as the bottom of a feature pyramid
            state = {name.removeprefix("backbone."): x for name, x in state.items()}
        if backbone_alone and not any(name.startswith("backbone.") for name in state):
            checkpoint["matching_heuristics"] = True
        return {**checkpoint, "model": state}

    def _load_model(self, checkpoint: Any):
        expected = self.model.state_dict()
        if checkpoint.pop("matching_heuristics", False):
            checkpoint["model"] = align_and_update_state_dicts(
                expected, checkpoint["model"], c2_conversion=False
            )
        state = checkpoint["model"]
        if CLASS_WEIGHT in state and CLASS_WEIGHT in expected:
            if state[CLASS_WEIGHT].shape[1:] == expected[CLASS_WEIGHT].shape[1:]:
                self._fit_classes(state, len(expected[CLASS_WEIGHT]))
        self._require_fit(state, expected)
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes:
            name, found, wanted = incompatible.incorrect_shapes[0]
            others = len(incompatible.incorrect_shapes) - 1
            raise InputError(
                f"The checkpoint {self._path} does not fit the model: {name} is {tuple(found)} in "
                f"the file and {tuple(wanted)} in the model"
                f"{f' (and {others} more)' if others else ''}."
            )
        return incompatible

    def _require_fit(self, state: dict, expected: dict) -> None:
        """Refuse a file that leaves out what it should fill, or holds what the model lacks.

        Detectron2's own account forgives missing statistics of frozen batch norms.
        """
        filled = [name for name in expected if name in state]
        # how many batches a norm has seen is of no use after the training
        missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
        unused = [name for name in state if name not in expected]
        if not filled:
            raise InputError(
                f"The checkpoint {self._path} has nothing in common with the model; it holds "
                f"{listed(sorted(state))}."
            )
        whole = self.complete or not all(name.startswith("backbone.") for name in filled)
        needed = missing if whole else [name for name in missing if self._in_resnet(name)]
        if needed:
            raise InputError(
                f"The checkpoint {self._path} does not fit the model: it lacks {listed(needed)}."
            )
        surplus = unused if whole else [k for k in unused if re.search(r"res[2-5]\.\d+\.", k)]
        if surplus:
            raise InputError(
                f"The checkpoint {self._path} does not fit the model, which has no "
                f"{listed(surplus)}."
            )
        fresh = [name for name in missing if name.startswith("backbone.")]
        if fresh:
            # necks, such as an FPN, are not part of pre-trained weights
            self.logger.warning(f"These start from random weights: {listed(fresh)}.")
        if unused:
            self.logger.warning(f"These are not used: {listed(unused)}.")

    def _has_resnet(self) -> bool:
        return any(isinstance(module, ResNet) for module in self.model.modules())

    def _in_resnet(self, name: str) -> bool:
        """Whether a tensor belongs to a ResNet, which pre-trained weights fill entirely."""
        return any(
            isinstance(module, ResNet) and name.startswith(f"{prefix}.")
            for prefix, module in self.model.named_modules()
        )

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
