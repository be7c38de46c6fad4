"""The hook for evaluations during a training; keeps the best weights and draws predictions."""

import logging
import math
from pathlib import Path

from detectron2.engine.hooks import EvalHook
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from dab_detr.checkpoint.checkpointer import BEST_FILE, Checkpointer
from dab_detr.checkpoint.writing import write_state
from dab_detr.engine.course import Course
from dab_detr.engine.hooks import EMAHook, save_step
from dab_detr.engine.launching.interruption import Interruption, TrainingStopped
from dab_detr.evaluation.evaluate import (
    RESULTS_FILE,
    evaluate,
    format_results,
    mean_precision,
    read_results,
)
from dab_detr.evaluation.test_sets import build_loader, evaluated_sets, label
from dab_detr.inference.copy import inference_copy
from dab_detr.visualization.predictions import predictions

logger = logging.getLogger(__name__)


class Evaluation(EvalHook):
    """Detectron2's hook, which also keeps the best weights and runs evaluations missed by a stop.

    The best weights, raw or EMA, are those with the highest AP, the mean over all data sets.

    Args:
        cfg: a complete config.
        model: without DistributedDataParallel.
        course: of this training; without a period in the config, it is an epoch.
        checkpointer: saves if a signal interrupts an evaluation after a step.
        average: the EMA, which is also evaluated; None: there is none.
        interruption: a signal interrupts an evaluation immediately, on process 0.

    Attributes:
        results: of the last evaluation, see :func:`~dab_detr.evaluation.evaluate.evaluate`.
    """

    def __init__(
        self,
        cfg: DictConfig,
        model: nn.Module,
        course: Course,
        checkpointer: Checkpointer,
        *,
        average: EMAHook | None,
        interruption: Interruption,
    ):
        super().__init__(cfg.train.eval_period or course.settings.epoch, self._evaluate)
        self.results: dict = {}
        self._cfg = cfg
        self._model = model
        self._course = course
        self._checkpointer = checkpointer
        self._average = average
        self._interruption = interruption
        self._folder = Path(cfg.train.output_dir)
        self._best = -math.inf

    def before_train(self) -> None:
        """Run the evaluation of the last checkpoint's step if a stop has prevented it."""
        step = self.trainer.start_iter
        if step == 0 or step >= self.trainer.max_iter:
            return
        results = comm.all_gather(read_results(self._folder / RESULTS_FILE, step))[0]
        if results is None:
            # the former end of a training that is longer now is also evaluated
            if step % self._period and step != self._course.former_max_iter:
                return
            results = self._evaluate_at(step)
        else:
            self._keep_best(results)
        self.trainer.storage.put_scalars(
            **flatten_results_dict(results), smoothing_hint=False, cur_iter=step - 1
        )
        comm.synchronize()

    def after_step(self) -> None:
        try:
            super().after_step()
        except TrainingStopped:
            save_step(self._checkpointer, self.trainer.iter)
            raise

    def after_train(self) -> None:
        """Evaluate a training that has reached its end.

        ``EvalHook`` would also evaluate if the last step has failed, and an error of that
        evaluation would hide the reason.
        """
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()

    def _evaluate(self) -> dict:
        return self._evaluate_at(min(self.trainer.iter + 1, self.trainer.max_iter))

    def _evaluate_at(self, step: int) -> dict:
        averaged = self._average.model if self._average else None
        with self._interruption.interruptible():
            self.results = evaluate(self._cfg, self._model, step=step, averaged=averaged)
            if self.results and step < self._course.max_iter:
                logger.info(f"Evaluation after step {step}:\n{format_results(self.results)}")
            if comm.is_main_process():
                self._show_predictions()
        self._keep_best(self.results)
        return self.results

    def _keep_best(self, results: dict) -> None:
        for task, precision in mean_precision(results).items():
            # comparisons with NaN are false
            if precision > self._best:
                self._best = precision
                if comm.is_main_process():
                    self._write_best(task)

    def _write_best(self, task: str) -> None:
        is_average = self._average is not None and task.endswith("_ema")
        best = self._average.model if is_average else self._model
        path = self._folder / BEST_FILE
        write_state(best.state_dict(), path, self._checkpointer.description())
        logger.info(f"The best AP so far, of {task}: its weights are in {path}.")

    def _show_predictions(self) -> None:
        """Draw predictions on validation images for the writers."""
        cfg = self._cfg
        pictures = cfg.train.pictures
        if not pictures.tensorboard:
            return
        fast = inference_copy(self._model)
        for data_set in evaluated_sets(cfg):
            drawn = predictions(
                fast,
                build_loader(cfg, data_set),
                data_set,
                count=pictures.tensorboard,
                score_threshold=pictures.score_threshold,
            )
            for name, image in drawn:
                tag = f"validation{label(cfg, data_set)}/{name}"
                self.trainer.storage.put_image(tag, image.transpose(2, 0, 1))

    def state_dict(self) -> dict:
        return {"best": self._best}

    def load_state_dict(self, state: dict) -> None:
        self._best = state["best"]
