"""A config for tests of signals: a process waits at the moment that the test has chosen.

``HOLD`` in the environment is "MOMENT:RANKS"; these processes report their numbers in the pipe
``reached`` of the folder ``HOLD_FOLDER`` and wait until the test writes into the pipe ``go_RANK``.
"""

import os
from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from detectron2.utils import comm

from dab_detr import get_config
from dab_detr.evaluation.coco_evaluator import BoxEvaluator

_exact = get_config(Path(__file__).with_name("exact_config.py"))
dataloader, lr_multiplier = _exact.dataloader, _exact.lr_multiplier
model, optimizer, train = _exact.model, _exact.optimizer, _exact.train


def hold(moment):
    chosen, _, ranks = os.environ.get("HOLD", "").partition(":")
    rank = str(comm.get_rank())
    if moment != chosen or rank not in ranks:
        return
    # once
    os.environ["HOLD"] = ""
    folder = Path(os.environ["HOLD_FOLDER"])
    with open(folder / "reached", "w") as reached:
        reached.write(f"{rank} {os.getpid()}\n")
    with open(folder / f"go_{rank}", "rb", buffering=0) as go:
        go.read(1)


def at_set_up(value):
    hold("set-up")
    return value


class SGD(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps == 2:
            hold("step")
        return super().step(closure)

    def state_dict(self):
        hold("checkpoint")
        return super().state_dict()


class Evaluator(BoxEvaluator):
    def process(self, inputs, outputs):
        hold("inference")
        super().process(inputs, outputs)

    def evaluate(self, img_ids=None):
        results = super().evaluate(img_ids)
        if comm.is_main_process():
            # the others have left and wait
            hold("numbers")
        return results


lr_multiplier = L(at_set_up)(value=lr_multiplier)
optimizer._target_ = SGD
dataloader.evaluator._target_ = Evaluator
dataloader.train.total_batch_size = 4
train.max_iter = 5
train.eval_period = 2
train.checkpointer.max_to_keep = None
