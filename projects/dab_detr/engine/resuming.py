"""Resumes a training from the last checkpoint of a folder, and reports changed settings."""

import logging
import math
import shutil
from pathlib import Path

from detectron2.engine.hooks import LRScheduler
from detectron2.utils import comm
from torch.optim import Optimizer

from dab_detr.checkpoint.checkpointer import FINAL_FILE, Checkpointer
from dab_detr.engine.course import Course
from dab_detr.engine.trainer import Trainer
from dab_detr.errors import InputError
from dab_detr.files import atomic_write

logger = logging.getLogger(__name__)


def find_checkpoints(checkpointer: Checkpointer) -> list[str]:
    """The checkpoints to resume from, see :meth:`Checkpointer.checkpoints`.

    Raises:
        InputError: if only some processes find any.
    """
    folder = checkpointer.save_dir
    found = checkpointer.checkpoints()
    if len(set(comm.all_gather(bool(found)))) > 1:
        raise InputError(
            f"Only some machines find a checkpoint in {folder}; to resume, all have to access the "
            "same folder."
        )
    if not found:
        logger.info(f"{folder} has no checkpoint: starting from the beginning.")
    return found


def resume_training(
    checkpointer: Checkpointer, paths: list[str], trainer: Trainer, course: Course
) -> int:
    """Load the last checkpoint; returns the number of steps that are done.

    Settings that differ from the checkpoint's are logged, with their effect.

    Args:
        checkpointer: has ``trainer`` and ``course`` as checkpointables.
        paths: result of :func:`find_checkpoints`.

    Raises:
        InputError: if the checkpoint does not fit, or cannot be continued with these settings.
    """
    checkpointer.complete = True
    optimizer = trainer.optimizer
    wanted = [{key: group.get(key) for key in _KEPT} for group in optimizer.param_groups]
    try:
        path = checkpointer.resume(paths)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"The checkpoint in {checkpointer.save_dir} is of another optimizer ({error}): resume "
            "with its config, or start a new training in another train.output_dir."
        ) from error
    step = trainer.iter + 1
    changes = course.resume(step)
    logger.info(f"Resuming after step {step}.")
    if changes and step < course.max_iter:
        logger.warning(f"{path} was made with other settings: {_effect(changes, course, trainer)}")
    _warn_of_kept_values(optimizer, wanted, path)
    if step >= course.max_iter:
        logger.info(
            f"All {step} steps of this training are done: it is only evaluated. Increase "
            "train.max_iter or train.epochs to continue."
        )
        if comm.is_main_process() and Path(path).name != FINAL_FILE:
            # it was stopped between writing two checkpoints of the same step
            with open(path, "rb") as file:
                atomic_write(
                    Path(path).with_name(FINAL_FILE), lambda copy: shutil.copyfileobj(file, copy)
                )
            checkpointer.tag_last_checkpoint(FINAL_FILE)
    return step


# settings of the optimizer that come from the loaded state
_KEPT = ("lr", "weight_decay")


def _effect(changes: list[str], course: Course, trainer: Trainer) -> str:
    step = trainer.iter + 1
    group = trainer.optimizer.param_groups[LRScheduler.get_best_param_group_id(trainer.optimizer)]
    rate = group.get("initial_lr", group["lr"]) * course.multiplier(step)
    before = group["lr"]
    return (
        f"{', '.join(changes)}. {course.samples(step)} images have been seen, "
        f"{100 * course.fraction_done(step):.1f} % of the training; "
        f"{course.max_iter - step} steps of "
        f"{course.settings.batch_size} images are left, and the learning rate continues at "
        + (
            f"{rate:.3g}, as before."
            if math.isclose(rate, before)
            else f"{rate:.3g} instead of {before:.3g}."
        )
    )


def _warn_of_kept_values(optimizer: Optimizer, wanted: list[dict], path: str) -> None:
    for group, values in zip(optimizer.param_groups, wanted):
        found = {**group, "lr": group.get("initial_lr", group["lr"])}
        for key in _KEPT:
            if values[key] is not None and not math.isclose(values[key], found[key]):
                logger.warning(
                    f"The config's {key} {values[key]:.3g} is not used: resumed from {path}, the "
                    f"training keeps {found[key]:.3g}."
                )
                return
