"""Detectron2's checkpointer for all layouts of DAB-DETR; it refuses what does not fit."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import nn

from dab_detr.checkpoint.addresses import Located, locate
from dab_detr.checkpoint.average import average_of
from dab_detr.checkpoint.classes import CLASS_WEIGHT, coco_rows, fit_classes, names_of_rows
from dab_detr.checkpoint.conversion import to_dab_detr
from dab_detr.checkpoint.description import KEY, describe, description_of
from dab_detr.checkpoint.fitting import has_resnet, require_fit, require_shapes
from dab_detr.checkpoint.layouts import DAB_DETR, detect_layout
from dab_detr.checkpoint.reading import DamagedCheckpoint, read_checkpoint
from dab_detr.checkpoint.settings import (
    settings_of_file,
    settings_of_model,
    warn_of_other_settings,
)
from dab_detr.errors import InputError, listed
from dab_detr.files import UNFINISHED, atomic_write, atomic_write_text

# the best weights so far; a training cannot be resumed from them
BEST_FILE = "model_best.pth"
FINAL_FILE = "model_final.pth"
# names of a training's checkpoints; all other files in the folder are the user's
_NUMBERED = re.compile(r"model_(\d{7})\.pth")
_OWN_NAME = re.compile(r"model_(\d{7}|final)\.pth")


class Checkpointer(DetectionCheckpointer):
    """Detects the layout of a file and refuses files that do not fit the model.

    Reads this project's, the published, detrex's, transformers' and mmdetection's DAB-DETR,
    torchvision's ResNet, and Detectron2's ``.pkl`` and ``.pth``. Pickled code is never run. Files
    of this project have a description (see :mod:`dab_detr.checkpoint.description`) and are only
    compared with the model.

    Args:
        model, save_dir, **checkpointables: as in :class:`DetectionCheckpointer`.
        complete: the file has to fill the whole model, as for an evaluation. Otherwise it may also
            have only the backbone, as ImageNet weights do, or other classes; see
            :func:`~dab_detr.checkpoint.classes.fit_classes`.
        class_names: names of the model's classes, which are written into the files and used to
            select rows of a file's class head; None: not known.
        config: what the files say of the config, see
            :func:`~dab_detr.stored_config.settings_to_store`.
        averaged: load the EMA weights of a training's checkpoint instead of its weights.
        max_to_keep: number of ``model_<iteration>.pth`` files to keep, counted over all resumes;
            None keeps all. Only files that the training itself has written are removed.

    Raises:
        InputError: on loading, if the file is missing, cannot be read or does not fit;
            :class:`NoAverage` if ``averaged`` and the file has no EMA weights.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        complete: bool,
        class_names: Sequence[str] | None = None,
        config: Mapping[str, Any] | None = None,
        averaged: bool = False,
        max_to_keep: int | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.complete = complete
        self.class_names = class_names
        self._config = config
        self._averaged = averaged
        self.max_to_keep = max_to_keep
        self._written: set[int] = set()
        self._is_resuming = False
        self.logger = logging.getLogger(__name__)

    def save(self, name: str, **extras: Any) -> None:
        """Write ``name.pth`` into the folder and mark it as the last checkpoint.

        The write is atomic: if the process is killed, the file is either complete or absent.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {KEY: self.description(), "model": self.model.state_dict(), **extras}
        content |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        file_name = f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {os.path.join(self.save_dir, file_name)}")
        for left_behind in Path(self.save_dir).glob(f".model_*{UNFINISHED}"):
            left_behind.unlink()
        atomic_write(self._in_folder(file_name), lambda file: torch.save(content, file))
        self.tag_last_checkpoint(file_name)
        if number := _NUMBERED.fullmatch(file_name):
            self._written.add(int(number[1]))
        self._remove_old(extras.get("iteration", 0))

    def _remove_old(self, iteration: int) -> None:
        if self.max_to_keep is None:
            return
        files = {n: Path(self._in_folder(f"model_{n:07d}.pth")) for n in self._written}
        # after a resume from an earlier checkpoint, later ones are not part of the training
        oldest_first = sorted(
            (number for number, file in files.items() if file.exists()),
            key=lambda number: (number <= iteration, number),
        )
        for number in oldest_first[: -self.max_to_keep]:
            files[number].unlink(missing_ok=True)
            self._written.remove(number)

    def description(self) -> dict[str, Any]:
        """The description that is written beside the model's weights."""
        settings = settings_of_model(self.model)
        return describe(class_names=self.class_names, settings=settings, config=self._config)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Record which file :meth:`resume` tries first."""
        atomic_write_text(self._in_folder("last_checkpoint"), last_filename_basename)

    def resume(self, paths: Sequence[str] | None = None) -> str:
        """Load the last checkpoint of the folder, or the newest earlier one that is not damaged.

        Args:
            paths: result of :meth:`checkpoints`; None: call it.

        Returns:
            The file that was loaded.

        Raises:
            InputError: if all are damaged, or one does not fit.
        """
        damaged = []
        for path in self.checkpoints() if paths is None else paths:
            self._is_resuming = True
            try:
                self.load(path)
            except DamagedCheckpoint as error:
                self.logger.warning(f"{error} Trying the previous checkpoint.")
                damaged.append(path)
            else:
                return path
            finally:
                self._is_resuming = False
        raise InputError(
            f"No checkpoint in {self.save_dir} can be read ({listed(damaged)}); start a new "
            "training without --resume, in another train.output_dir."
        )

    def checkpoints(self) -> list[str]:
        """The training's checkpoints in the folder: the last one, then the newest first.

        Files with weights only are left out: they have no optimizer state and no iteration.
        """
        self._written = set()
        files, weights = [], []
        for file in Path(self.save_dir).glob("model_*.pth"):
            path = self._in_folder(file.name)
            if file.name != BEST_FILE:
                (files if self._is_of_training(path) else weights).append(path)
        if weights:
            self.logger.warning(
                "A training cannot be resumed from weights without its state (start a new one with "
                f"train.init_checkpoint=FILE): {listed(sorted(weights))}."
            )
        files.sort(key=os.path.getmtime, reverse=True)
        last = self.get_checkpoint_file() if self.has_checkpoint() else None
        return sorted(files, key=lambda file: file != last)

    def _is_of_training(self, path: str) -> bool:
        name = os.path.basename(path)
        try:
            # the tensors stay on the disk
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        # damaged and foreign files fail in many ways
        except Exception:
            # with a training's name it is a damaged checkpoint; loading it will report that
            return _OWN_NAME.fullmatch(name) is not None
        if not isinstance(content, dict) or not {"iteration", "trainer"} <= content.keys():
            return False
        if name == f"model_{content['iteration']:07d}.pth":
            self._written.add(content["iteration"])
        return True

    def _in_folder(self, file_name: str) -> str:
        return os.path.join(self.save_dir, file_name)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint, see :func:`dab_detr.checkpoint.addresses.locate`; '': nothing."""
        self._located = locate(path) if path else Located(path)
        self._path = self._located.path
        if path and os.path.isdir(self._path):
            # the parent class accepts files only
            checkpoint = read_checkpoint(self._path)
            self.load_content(checkpoint, self._located)
            return checkpoint
        try:
            return super().load(self._path, *args, **kwargs)
        finally:
            # Detectron2 leaves it set when a file is refused, and then cannot load another
            self._parsed_url_during_load = None

    def load_content(self, checkpoint: dict[str, Any], located: Located) -> list[str] | None:
        """Load what :func:`read_checkpoint` has read from there; ``checkpoint`` is changed.

        Returns:
            The file's class names, for the rows of the model's class head; None if it has none.
        """
        self._located, self._path = located, located.path
        content = self._converted(checkpoint, located.path)
        present = content.get("class_names")
        self._load_model(content)
        return names_of_rows(getattr(self.model, "num_classes", 0), present)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return self._converted(read_checkpoint(filename), filename)

    def _converted(self, checkpoint: dict[str, Any], filename: str) -> dict[str, Any]:
        if self._averaged:
            checkpoint["model"] = average_of(checkpoint, filename)
        state = checkpoint["model"]
        description = description_of(checkpoint, filename)
        warn_of_other_settings(self.model, settings_of_file(checkpoint, description), filename)
        layout = detect_layout(state, description)
        if self._is_resuming:
            self._require_own_training(checkpoint, is_old=layout is not None and layout.is_own)
        if layout is DAB_DETR:
            return {**checkpoint, "class_names": (description or {}).get("class_names")}
        backbone_alone = layout is None or layout.backbone_alone
        # a ResNet of timm has torchvision's names, which need no conversion
        if layout is not None and (not backbone_alone or has_resnet(self.model)):
            conversion = to_dab_detr(state, description)
            state = conversion.state
            if conversion.class_names is None and self._located.published:
                conversion.class_names = coco_rows(state)
            checkpoint["class_names"] = conversion.class_names
            for line in conversion.report().splitlines():
                self.logger.info(line)
        if backbone_alone and all(name.startswith("backbone.") for name in state):
            if not state.keys() & self.model.state_dict().keys():
                # the model's ResNet is nested, as the bottom-up part of an FPN
                state = {name.removeprefix("backbone."): x for name, x in state.items()}
        if backbone_alone and not any(name.startswith("backbone.") for name in state):
            checkpoint["matching_heuristics"] = True
        return {**checkpoint, "model": state}

    def _require_own_training(self, checkpoint: Mapping[str, Any], *, is_old: bool) -> None:
        if is_old:
            # its optimizer state is for other tensors
            reason = "was started with dab_detr 0.1: finish it with that version, or start another"
        elif not self.checkpointables.keys() <= checkpoint.keys():
            reason = "is of another program and lacks what is needed to resume: start another"
        else:
            return
        raise InputError(
            f"The training of {self._path} {reason} from its weights in another "
            f"train.output_dir: train.init_checkpoint={self._path}."
        )

    def _load_model(self, checkpoint: Any):
        expected = self.model.state_dict()
        class_names = checkpoint.pop("class_names", None)
        if checkpoint.pop("matching_heuristics", False):
            checkpoint["model"] = align_and_update_state_dicts(
                expected, checkpoint["model"], c2_conversion=False
            )
        state = checkpoint["model"]
        if CLASS_WEIGHT in state and CLASS_WEIGHT in expected:
            if state[CLASS_WEIGHT].shape[1:] == expected[CLASS_WEIGHT].shape[1:]:
                self._fit_classes(state, class_names, len(expected[CLASS_WEIGHT]))
        require_fit(state, self.model, self._path, complete=self.complete)
        incompatible = super()._load_model(checkpoint)
        require_shapes(incompatible.incorrect_shapes, self._path)
        return incompatible

    def _fit_classes(
        self, state: dict, class_names: Sequence[str] | None, num_classes: int
    ) -> None:
        try:
            note = fit_classes(
                state,
                num_classes,
                present=class_names,
                wanted=self.class_names,
                may_restart=not self.complete,
            )
        except ValueError as error:
            raise InputError(
                f"The checkpoint {self._path} does not fit the model: {error}."
            ) from error
        if note:
            self.logger.warning(note)
