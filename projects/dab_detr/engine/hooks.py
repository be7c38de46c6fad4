"""Hooks of a training: metric history, learning rate, EMA, stop on a signal."""

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dab_detr.checkpoint import Checkpointer
from dab_detr.engine.launching.interruption import TrainingStopped


class MetricHistory(HookBase):
    """Saves the recent values of all metrics in checkpoints and restores them on resume.

    Writers show the latest value of a metric, or a median of recent values if it is noisy; without
    this hook the first rows after a resume would differ. It has to be the first hook.

    Args:
        window: number of values to keep per metric.
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
    """Logs the backbone's learning rate; ``LRScheduler``, which follows, logs the other rate.

    Args:
        optimizer: some of its groups may have the backbone's parameters.
        backbone: the module.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, backbone: nn.Module):
        own = {id(parameter) for parameter in backbone.parameters()}
        self._optimizer = optimizer
        # loading a state replaces the groups, but keeps their order
        self._indices = [
            index
            for index, group in enumerate(optimizer.param_groups)
            if any(id(parameter) in own for parameter in group["params"])
        ]

    def after_step(self) -> None:
        for index in self._indices[:1]:
            rate = self._optimizer.param_groups[index]["lr"]
            self.trainer.storage.put_scalar("lr_backbone", rate, smoothing_hint=False)


class EMAHook(HookBase):
    """An exponential moving average of the weights, updated after each step.

    Args:
        model: the model without DistributedDataParallel.
        decay: factor of the average at each update, in 0..1. Early in training it is lower,
            (1 + n) / (10 + n) at the n-th update, so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it has to be in 0..1.")
        self._source = model
        self._decay = decay
        self._average = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)

    def before_train(self) -> None:
        """Start with the loaded weights, unless an average has been loaded."""
        if self._average.n_averaged == 0:
            self.model.load_state_dict(self._source.state_dict())

    @property
    def model(self) -> nn.Module:
        """The model with the EMA weights."""
        return self._average.module

    def _mix(self, averaged: list, current: list, updates: torch.Tensor | int) -> None:
        # the argument ``updates`` may be on a GPU, and reading it would wait for the device
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
    """Saves and stops the training after the step in which a signal was received; the last hook.

    Args:
        checkpointer: saves on process 0.
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
    """Write a checkpoint of the step that has just been taken, on process 0."""
    if comm.is_main_process():
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
