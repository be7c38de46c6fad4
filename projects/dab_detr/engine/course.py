"""Length and progress of a training, also if it is resumed with other settings.

Progress is counted in images seen. The numbering of steps continues after a resume with other
settings; only the number of remaining steps changes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig

from dab_detr.config import build
from dab_detr.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Settings of the length, the data order and the learning rates.

    Args:
        batch_size: images per step, over all processes.
        max_iter: the length in steps; None: in epochs.
        epochs: the length in passes over the data, if max_iter is None.
        num_images: number of training images. images: a digest of their names.
        multipliers: of the learning rate, at 0, 1, ... 100 % of the training.
    """

    batch_size: int
    max_iter: int | None
    epochs: float | None
    num_images: int
    images: str
    multipliers: list[float]

    @classmethod
    def of(
        cls,
        records: Sequence[dict],
        schedule: ParamScheduler,
        *,
        batch_size: int,
        max_iter: int | None,
        epochs: float | None,
    ) -> "Settings":
        """Settings for records (Detectron2's dicts) and a schedule over 0..1."""
        # without the folder: data that have been moved are the same data
        names = "\n".join(Path(str(record.get("file_name", ""))).name for record in records)
        return cls(
            batch_size=batch_size,
            max_iter=max_iter or None,
            epochs=None if max_iter else epochs,
            num_images=len(records),
            images=hashlib.sha256(names.encode()).hexdigest(),
            multipliers=[float(schedule(percent / 100)) for percent in range(101)],
        )

    @property
    def epoch(self) -> int:
        """Steps per pass over the data, at least 1."""
        return max(1, self.num_images // self.batch_size)

    @property
    def steps(self) -> int:
        """Number of steps of a training that has these settings from the start."""
        return self.max_iter or max(1, round(self.epochs * self.epoch))

    def same_length(self, other: "Settings") -> bool:
        """Whether the length is the same, apart from the batch size."""
        same_data = self.max_iter or self.num_images == other.num_images
        return bool(same_data) and (self.max_iter, self.epochs) == (other.max_iter, other.epochs)

    def changes(self, before: "Settings") -> list[str]:
        """Each key that differs, with both values."""
        found = [
            f"{key} {old} -> {new}"
            for key, old, new in (
                ("dataloader.train.total_batch_size", before.batch_size, self.batch_size),
                ("train.max_iter", before.max_iter, self.max_iter),
                ("train.epochs", before.epochs, self.epochs),
                ("images of dataloader.train", before.num_images, self.num_images),
            )
            if old != new
        ]
        if self.num_images == before.num_images and self.images != before.images:
            found.append("other images of dataloader.train")
        if self.multipliers != before.multipliers:
            found.append("another lr_multiplier")
        return found


class Course(ParamScheduler):
    """Steps, images and schedule of a training; a checkpointable and a parameter scheduler.

    Args:
        settings: those of the config.
        schedule: of the learning rate, over 0..1.

    Attributes:
        max_iter: total number of steps.
        former_max_iter: the total before a resume; None if the training was not resumed.
    """

    def __init__(self, settings: Settings, schedule: ParamScheduler):
        self.settings = settings
        self.max_iter = settings.steps
        self.former_max_iter: int | None = None
        self._schedule = schedule
        # where these settings took effect: steps, images, fraction of the training
        self._start = (0, 0, 0.0)
        self._saved: dict = {}

    def samples(self, step: int) -> int:
        """Number of images seen after ``step`` steps."""
        steps, samples, _ = self._start
        return samples + (step - steps) * self.settings.batch_size

    def fraction_done(self, step: int) -> float:
        """Fraction of the training that is done after ``step`` steps, in 0..1."""
        steps, _, share = self._start
        left = self.max_iter - steps
        return min(1.0, share + (1.0 - share) * ((step - steps) / left)) if left else 1.0

    def multiplier(self, step: int) -> float:
        """Multiplier of the learning rate for the step after ``step`` steps."""
        return self._schedule(self.fraction_done(step))

    def __call__(self, where: float) -> float:
        """The multiplier for a fraction of the steps, for Detectron2's ``LRMultiplier``."""
        return self.multiplier(round(where * self.max_iter))

    def state_dict(self) -> dict:
        return {
            "settings": asdict(self.settings),
            "start": list(self._start),
            "max_iter": self.max_iter,
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes effect in :meth:`resume`."""
        self._saved = state

    def resume(self, step: int) -> list[str]:
        """Continue a training whose checkpoint has been loaded.

        With another batch size, the fraction done is kept, and so is the remainder: in images if
        the length is given in epochs, in steps if it is given in steps. With another length, the
        images seen count towards it.

        Args:
            step: number of steps taken.

        Returns:
            What has changed, e.g. "train.max_iter 10 -> 20".

        Raises:
            InputError: if the new length is less than what is done.
        """
        before = Course(Settings(**self._saved["settings"]), self._schedule)
        before._start, before.max_iter = tuple(self._saved["start"]), self._saved["max_iter"]
        self.former_max_iter = before.max_iter
        done, new = before.samples(step), self.settings
        batch = new.batch_size
        if new.same_length(before.settings):
            if batch == before.settings.batch_size:
                self._start, self.max_iter = before._start, before.max_iter
            else:
                left = before.max_iter - step
                if new.max_iter is None:
                    left = -((done - before.samples(before.max_iter)) // batch)
                self._start = (step, done, before.fraction_done(step))
                self.max_iter = step + max(0, left)
        else:
            self._refuse_less(step, done)
            if done != step * batch:
                self._start = (step, done, done / (new.steps * batch))
                self.max_iter = step - (done - new.steps * batch) // batch
        return new.changes(before.settings)

    def _refuse_less(self, step: int, done: int) -> None:
        new = self.settings
        if done <= new.steps * new.batch_size:
            return
        key = "train.epochs" if new.max_iter is None else "train.max_iter"
        raise InputError(
            f"{key}={new.max_iter or new.epochs} asks for {new.steps} steps of {new.batch_size} "
            f"images, but {step} steps with {done} images are already done: increase {key} to "
            "continue, or evaluate with --eval-only train.init_checkpoint=FILE."
        )


def build_course(cfg: DictConfig, records: Sequence[dict]) -> Course:
    """The course of a training from its beginning.

    Args:
        cfg: a complete config. records: to train on.

    Raises:
        InputError: if ``lr_multiplier`` gives no schedule.
    """
    schedule = build(cfg, "lr_multiplier")
    if not isinstance(schedule, ParamScheduler):
        raise InputError(
            f"The config's lr_multiplier is a {type(schedule).__name__}; a ParamScheduler of "
            "fvcore is needed, such as MultiStepParamScheduler."
        )
    settings = Settings.of(
        records,
        schedule,
        batch_size=cfg.dataloader.train.total_batch_size,
        max_iter=cfg.train.max_iter,
        epochs=cfg.train.epochs,
    )
    return Course(settings, schedule)
