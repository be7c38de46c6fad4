"""A training that goes on: its rows, its place in the data, what its checkpoint holds."""

import copy
import csv
import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.engine import default_setup
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dab_detr.config import get_config
from dab_detr.engine import training
from dab_detr.engine.trainer import Trainer
from dab_detr.engine.training import train
from dab_detr.engine.writers import CSVWriter, Writers

CONFIG = Path(__file__).parents[1] / "data" / "own_config.py"


class Killed(Exception):
    pass


@pytest.fixture
def run(datasets_root, monkeypatch, forget_tiny):
    """A function that trains in a folder; evaluations are made up, of the steps it returns."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))

    def call(folder, *overrides, resume=False, die=None):
        forget_tiny()
        cfg = get_config(CONFIG, [f"train.output_dir={folder}", *overrides])
        cfg.train.writers = [LazyCall(CSVWriter)(path=f"{folder}/metrics.csv")]
        steps = []

        def evaluate(cfg, model, *, step, averaged):
            if die == ("evaluation", step):
                raise Killed
            steps.append(step)
            return {"bbox": {"AP": 10.0 + step}}

        with monkeypatch.context() as patch:
            patch.setattr(training, "evaluate", evaluate)
            if die is not None:
                # a killed process cleans nothing up
                if die != ("evaluation", cfg.train.max_iter):
                    patch.setattr(Trainer, "after_train", lambda trainer: None)
                _die_at(patch, *die)
            default_setup(cfg, None)
            try:
                train(cfg, instantiate(cfg.model), torch.device("cpu"), resume=resume)
            except Killed:
                assert die is not None
            else:
                assert die is None
        return steps

    return call


def _die_at(patch, moment, step):
    place = {"step": (Trainer, "run_step"), "rows": (Writers, "after_step")}.get(moment)
    if place is None:
        return
    original = getattr(*place)

    def die(self, *args):
        iteration = self.iter if moment == "step" else self.trainer.iter
        if iteration + 1 == step:
            raise Killed
        original(self, *args)

    patch.setattr(*place, die)


def rows(folder):
    """All of metrics.json; of times and rates only that they are there."""
    records = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v if "time" not in k else None for k, v in x.items()} for x in records]


def table(folder):
    with open(folder / "metrics.csv", newline="") as file:
        lines = list(csv.reader(file))
    return [x if "time" not in x[1] else x[:2] for x in lines]


def curves(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(x.step, x.value if "time" not in name else None) for x in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


# a checkpoint at 6 with an evaluation, at 12 with a log, too
RHYTHM = [
    "train.max_iter=13", "train.log_period=4", "train.checkpointer.period=3",
    "train.eval_period=6", "train.ema.enabled=True",
]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of the training that the others are compared with, once it has run."""
    return tmp_path_factory.mktemp("unbroken")


@pytest.mark.parametrize(
    "moments",
    [
        # goes on after 3, 6, 9, 12
        [("step", 5), ("step", 8), ("step", 11), ("evaluation", 12)],
        [("evaluation", 6), ("rows", 12), ("evaluation", 13)],
        [("rows", 13)],
    ],
    ids=str,
)
def test_the_rows_are_those_of_a_training_that_never_stopped(run, tmp_path, unbroken, moments):
    if not (unbroken / "model_final.pth").exists():
        run(unbroken, *RHYTHM)
    for number, moment in enumerate(moments):
        run(tmp_path, *RHYTHM, resume=number > 0, die=moment)
    run(tmp_path, *RHYTHM, resume=True)
    assert [x["iteration"] for x in rows(unbroken)] == [3, 5, 7, 11, 12, 13]
    assert rows(tmp_path) == rows(unbroken)
    assert table(tmp_path) == table(unbroken)
    assert curves(tmp_path) == curves(unbroken)


@pytest.mark.parametrize("cut", [b'{"iterat', b"\xff\xfe", b'\n\n[1, 2]\n7\n{"a": ', b"\x00" * 99])
def test_a_file_of_metrics_that_a_kill_has_cut_is_gone_on_with(run, tmp_path, unbroken, cut):
    if not (unbroken / "model_final.pth").exists():
        run(unbroken, *RHYTHM)
    run(tmp_path, *RHYTHM, die=("step", 11))
    with open(tmp_path / "metrics.json", "ab") as file:
        file.write(cut)
    run(tmp_path, *RHYTHM, resume=True)
    assert rows(tmp_path) == rows(unbroken)


def test_logged_losses_are_means_over_the_steps_since_the_last_log(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="dab_detr.engine.progress")
    settings = ["train.max_iter=7", "optimizer.lr=0.01"]
    run(tmp_path / "each", *settings, "train.log_period=1")
    each = {x["iteration"]: x for x in rows(tmp_path / "each") if "total_loss" in x}
    caplog.clear()
    run(tmp_path / "few", *settings, "train.log_period=3")
    few = {x["iteration"]: x for x in rows(tmp_path / "few") if "total_loss" in x}
    # the last one of the single step that is left
    assert list(few) == [2, 5, 6] and len(each) == 7
    names = [name for name in few[2] if "loss" in name] + ["grad_norm"]
    assert len(names) > 6
    for last, steps in ((2, (0, 1, 2)), (5, (3, 4, 5)), (6, (6,))):
        for name in names:
            mean = sum(each[i][name] for i in steps) / len(steps)
            assert few[last][name] == pytest.approx(mean, rel=1e-5), name
    assert few[5]["total_loss"] != each[5]["total_loss"]
    lines = re.findall(r"step (\d)/7 \| loss (\S+) \(last layer: class (\S+),", caplog.text)
    assert [(int(n), float(x), float(y)) for n, x, y in lines] == [
        (i + 1, round(few[i]["total_loss"], 3), round(few[i]["loss_class"], 3)) for i in few
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_data_go_on_where_they_were(run, tmp_path, monkeypatch, accumulate):
    """Each step's images, in order."""
    seen = {}
    original = Trainer._backward

    def note(trainer, batch, *args):
        seen.setdefault(trainer.iter, []).append([Path(x["file_name"]).name for x in batch])
        return original(trainer, batch, *args)

    monkeypatch.setattr(Trainer, "_backward", note)
    settings = [
        "train.max_iter=5", "train.checkpointer.period=3", f"train.accumulate={accumulate}"
    ]  # fmt: skip
    run(tmp_path / "whole", *settings)
    expected = copy.deepcopy(seen)
    assert {len(x) for x in seen.values()} == {accumulate}
    run(tmp_path / "stopped", *settings, die=("step", 5))
    seen.clear()
    run(tmp_path / "stopped", *settings, resume=True)
    assert seen == {i: expected[i] for i in (3, 4)}
