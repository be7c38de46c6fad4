"""What happens around the steps of a training: recent metrics, averages, the end."""

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dab_detr.checkpoint import Checkpointer
from dab_detr.engine.launching.interruption import TrainingStopped


class History(HookBase):
    """Hands the recent values of all metrics from a stopped training to the one that goes on.

    Writers show the latest value of each, or a median of the last ones where it is noisy; without
    this the first of them after a resume would differ. Has to be the first hook.

    Args:
        window: how many values of each metric are kept.
    """

    def __init__(self, window: int = 20):
        self._window = window
        self._restored: dict = {}

    def before_train(self) -> None:
        for name, (is_smoothed, values) in self._restored.items():
            for value, iteration in values:
                self.trainer.storage.put_scalar(
                    name, value, smoothing_hint=is_smoothed, cur_iter=iteration
                )
        self._restored = {}

    def state_dict(self) -> dict:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        return {
            name: (hints[name], [(v, int(i)) for v, i in history.values()[-self._window :]])
            for name, history in storage.histories().items()
        }

    def load_state_dict(self, state: dict) -> None:
        self._restored = state


class BackboneLearningRate(HookBase):
    """Logs the backbone's learning rate; ``LRScheduler``, which comes after it, logs the other.

    Args:
        optimizer: some of whose groups may hold the backbone's parameters.
        backbone: the module.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, backbone: nn.Module):
        own = {id(parameter) for parameter in backbone.parameters()}
        self._optimizer = optimizer
        # loading a state replaces the groups, their order stays
        self._indices = [
            index
            for index, group in enumerate(optimizer.param_groups)
            if any(id(parameter) in own for parameter in group["params"])
        ]

    def after_step(self) -> None:
        for index in self._indices[:1]:
            rate = self._optimizer.param_groups[index]["lr"]
            self.trainer.storage.put_scalar("lr_backbone", rate, smoothing_hint=False)


class MovingAverage(HookBase):
    """An exponential moving average of the weights, updated after each step.

    Args:
        model: not the wrapper of data parallelism.
        decay: what is kept of the average at each update, in 0..1. Early in the training it is
            lower, (1 + n) / (10 + n) at the n-th update, so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it has to be in 0..1.")
        self._source = model
        self._decay = decay
        self._average = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)

    def before_train(self) -> None:
        """Begin with the weights that have been loaded, unless an average was among them."""
        if self._average.n_averaged == 0:
            self.model.load_state_dict(self._source.state_dict())

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights."""
        return self._average.module

    def _mix(self, averaged: list, current: list, updates: torch.Tensor | int) -> None:
        # the argument may lie on a GPU, which would have to be waited for
        number = int(self._average.n_averaged)
        decay = min(self._decay, (1 + number) / (10 + number))
        get_ema_multi_avg_fn(decay)(averaged, current, updates)

    def after_step(self) -> None:
        self._average.update_parameters(self._source)

    def state_dict(self) -> dict:
        return self._average.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._average.load_state_dict(state)


class StopOnSignal(HookBase):
    """Saves and ends the training after the step during which a signal came. The last hook.

    Args:
        checkpointer: saves on the main worker.
    """

    def __init__(self, checkpointer: Checkpointer):
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        signum = self.trainer.stop_signal
        if signum is None:
            return
        save_step(self._checkpointer, self.trainer.iter)
        raise TrainingStopped(signum)


def save_step(checkpointer: Checkpointer, iteration: int) -> None:
    """Write a checkpoint of the step that has just been taken, on the main worker."""
    if comm.is_main_process():
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
