"""Averages, evaluations, learning rates and writers, in short real trainings."""

import csv
import json
import math
import os

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.engine import default_setup
from detectron2.evaluation import DatasetEvaluator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dab_detr.config import get_config
from dab_detr.engine import evaluation
from dab_detr.engine.hooks import EMAHook
from dab_detr.engine.trainer import Trainer
from dab_detr.engine.training import train
from dab_detr.engine.writers import CSVWriter
from dab_detr.errors import InputError
from dab_detr.inference.copy import inference_copy

CONFIG = "tests/assets/own_config.py"


@pytest.fixture
def config(datasets_root, monkeypatch, tmp_path, forget_tiny, pytestconfig):
    """A function that loads the config with overrides."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))

    def load(*overrides):
        forget_tiny()
        path = pytestconfig.rootpath / CONFIG
        return get_config(path, [f"train.output_dir={tmp_path}", *overrides])

    return load


def run(cfg, resume=False):
    default_setup(cfg, None)
    model = instantiate(cfg.model)
    return train(cfg, model, torch.device("cpu"), resume=resume), model


def test_the_average_follows_its_formula():
    model = nn.Linear(2, 1, bias=False)
    model.register_buffer("count", torch.tensor(0))
    # as the statistics of a batch norm, which belong to the weights
    model.register_buffer("mean", torch.tensor(0.0))
    hook = EMAHook(model, decay=0.3)
    expected = None
    for number, value in enumerate((1.0, 5.0, -3.0, 8.0, 2.0)):
        nn.init.constant_(model.weight, value)
        model.count += 1
        model.mean.fill_(10 * value)
        hook.after_step()
        decay = min(0.3, (1 + number) / (10 + number))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert hook.model.weight[0].tolist() == pytest.approx([expected] * 2, rel=1e-6)
        assert hook.model.mean.item() == pytest.approx(10 * expected, rel=1e-6)
    other = EMAHook(nn.Linear(2, 1, bias=False), decay=0.3)
    other._average.module.register_buffer("count", torch.tensor(0))
    other._average.module.register_buffer("mean", torch.tensor(0.0))
    other.load_state_dict(hook.state_dict())
    assert torch.equal(other.model.weight, hook.model.weight)
    assert torch.equal(model.weight, torch.full((1, 2), 2.0))


class MeanScore(DatasetEvaluator):
    """Tells models apart that have learned nothing yet."""

    def reset(self):
        self._scores = []

    def process(self, inputs, outputs):
        self._scores += [output["instances"].scores for output in outputs]

    def evaluate(self):
        return {"bbox": {"AP": 100 * torch.cat(self._scores).mean().item()}}


def scores_of(cfg, state):
    model = instantiate(cfg.model)
    model.load_state_dict(state)
    evaluator = MeanScore()
    evaluator.reset()
    with torch.no_grad():
        for batch in instantiate(cfg.dataloader.test):
            evaluator.process(batch, inference_copy(model)(batch))
    return evaluator.evaluate()["bbox"]["AP"]


def test_the_average_is_what_is_evaluated_as_the_average(config, tmp_path):
    overrides = ["optimizer.lr=0.01", "train.max_iter=6"]
    cfg = config("train.ema.enabled=True", "train.ema.decay=0.9", *overrides)
    cfg.dataloader.evaluator = LazyCall(MeanScore)()
    results, _ = run(cfg)
    checkpoint = torch.load(tmp_path / "model_final.pth")
    average = checkpoint["trainer"]["hooks"]["EMAHook"]
    average = {k.removeprefix("module."): v for k, v in average.items() if k != "n_averaged"}
    expected = scores_of(cfg, checkpoint["model"]), scores_of(cfg, average)
    assert abs(expected[0] - expected[1]) > 0.01
    measured = results["bbox"]["AP"], results["bbox_ema"]["AP"]
    assert measured == pytest.approx(expected, abs=1e-4)


def test_an_average_that_begins_at_a_resume_begins_with_the_loaded_weights(config, tmp_path):
    """The first thing to do is an evaluation that a stop has prevented."""
    overrides = ["train.max_iter=2", "train.eval_period=1", "train.checkpointer.period=1"]
    run(config(*overrides))
    (tmp_path / "evaluation.json").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000000.pth")
    cfg = config("train.ema.enabled=True", *overrides)
    cfg.dataloader.evaluator = LazyCall(MeanScore)()
    run(cfg, resume=True)
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    first = next(x for x in lines if "bbox_ema/AP" in x)
    assert first["iteration"] == 0 and first["bbox_ema/AP"] == first["bbox/AP"]


@pytest.mark.parametrize("decay", [1.0, -0.1, 2])
def test_an_impossible_decay_is_refused(config, decay):
    with pytest.raises(InputError, match=f"decay is {decay}"):
        run(config("train.ema.enabled=True", f"train.ema.decay={decay}"))


def test_the_best_weights_are_kept(config, tmp_path, monkeypatch):
    """Evaluations are made up; the third of four is the best, and comes from the average."""
    points = iter(
        [(10.0, 9.0), (math.nan, 12.0), (20.0, 21.0), (20.5, 20.6)],
    )
    kept = {}

    def evaluate(cfg, model, *, step, averaged):
        kept[step] = {k: v.clone() for k, v in averaged.state_dict().items()}
        raw, mean = next(points)
        return {"bbox": {"AP": raw}, "bbox_ema": {"AP": mean}}

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    overrides = ["train.max_iter=4", "train.eval_period=1", "train.ema.enabled=True"]
    run(config(*overrides, "train.checkpointer.period=3"))
    assert sorted(kept) == [1, 2, 3, 4]
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]
    assert all(torch.equal(best[name], value) for name, value in kept[3].items())
    assert any(not torch.equal(best[name], value) for name, value in kept[4].items())

    # a resumed training knows what there was
    before = (tmp_path / "model_best.pth").read_bytes()
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    points = iter([(20.9, 20.8), (20.7, 1.0)])
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    (tmp_path / "evaluation.json").write_text(
        json.dumps({"step": 3, "results": {"bbox": {"AP": 20.0}, "bbox_ema": {"AP": 21.0}}})
    )
    run(config(*overrides), resume=True)
    assert (tmp_path / "model_best.pth").read_bytes() == before


def test_everything_is_written_for_tensorboard(config, tmp_path):
    run(
        config(
            "train.max_iter=3", "train.eval_period=2", "train.pictures.tensorboard=2",
            "optimizer.params.lr_factor_func.factor=0.1",
        )
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    names = events.Tags()["scalars"]
    layers = [f"loss_{x}{layer}" for x in ("class", "bbox", "giou") for layer in ("", "_0")]
    assert {*layers, "total_loss", "lr", "lr_backbone", "grad_norm", "bbox/AP"} <= set(names)
    assert events.Scalars("lr_backbone")[-1].value == pytest.approx(
        0.1 * events.Scalars("lr")[-1].value
    )
    pictures = [name for name in events.Tags()["images"] if name.startswith("validation/")]
    assert len(pictures) == 2
    assert [image.step for image in events.Images(pictures[0])] == [1, 3]


def test_further_writers_are_those_of_detectron2(config, tmp_path):
    cfg = config("train.max_iter=3")
    cfg.train.writers = [LazyCall(CSVWriter)(path=str(tmp_path / "logs" / "metrics.csv"))]
    run(cfg)
    with open(tmp_path / "logs" / "metrics.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["iteration", "name", "value"]
    losses = {int(i): float(v) for i, name, v in rows[1:] if name == "total_loss"}
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert losses == {x["iteration"]: x["total_loss"] for x in lines if "total_loss" in x}
    assert len({(i, name) for i, name, _ in rows}) == len(rows)


def test_the_learning_rate_follows_the_batch_only_when_asked(config, tmp_path, caplog):
    def rate(*overrides):
        run(config("train.max_iter=1", "optimizer.lr=0.001", *overrides))
        checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
        groups = checkpoint["trainer"]["optimizer"]["param_groups"]
        return max(group["initial_lr"] for group in groups)

    caplog.set_level("INFO")
    assert rate() == 0.001
    assert "auto_scale_lr" not in caplog.text
    assert rate("train.auto_scale_lr.enabled=True") == pytest.approx(0.001 * 4 / 16)
    assert "optimizer.lr is 0.00025 instead of 0.001" in caplog.text


def test_old_checkpoints_go_also_after_a_resume(config, tmp_path):
    overrides = ["train.checkpointer.period=1", "train.checkpointer.max_to_keep=2"]
    run(config("train.max_iter=3", *overrides))
    mine = tmp_path / "model_mine.pth"
    torch.save({"model": torch.load(tmp_path / "model_final.pth")["model"]}, mine)
    # before everything that the training wrote, or after it
    for last, time in ((6, 0), (8, None)):
        os.utime(mine, time if time is None else (time, time))
        run(config(f"train.max_iter={last}", *overrides), resume=True)
        kept = sorted(path.name for path in tmp_path.glob("model_*.pth") if path != mine)
        numbered = [f"model_{n:07d}.pth" for n in (last - 2, last - 1)]
        assert kept == [*numbered, "model_best.pth", "model_final.pth"]
        assert mine.is_file()


def test_a_folder_with_weights_alone_is_no_training_to_resume(config, tmp_path, caplog):
    _, model = run(config("train.max_iter=1", f"train.output_dir={tmp_path / 'first'}"))
    torch.save({"model": model.state_dict()}, tmp_path / "model_0000007.pth")
    run(config("train.max_iter=2"), resume=True)
    assert "A training cannot be resumed from weights without its state" in caplog.text
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [x["iteration"] for x in lines if "total_loss" in x] == [0, 1]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_failed_last_step_ends_with_its_own_error(config, monkeypatch, steps):
    step = Trainer.run_step

    def fail_at_the_end(trainer):
        if trainer.iter == steps - 1:
            raise FloatingPointError("the loss is not finite")
        step(trainer)

    def evaluate(*_, **__):
        raise RuntimeError("the evaluation of broken weights fails too")

    monkeypatch.setattr(Trainer, "run_step", fail_at_the_end)
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        run(config(f"train.max_iter={steps}"))


def test_an_evaluation_that_a_stop_prevented_is_made_up_for(config, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    real = evaluation.evaluate

    def die(*_, **__):
        raise Killed

    overrides = ["train.max_iter=4", "train.eval_period=2", "train.checkpointer.period=2"]
    monkeypatch.setattr(evaluation, "evaluate", die)
    with pytest.raises(Killed):
        run(config(*overrides))
    steps = []
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *a, step, **k: steps.append(step) or real(*a, step=step, **k)
    )
    run(config(*overrides), resume=True)
    assert steps == [2, 4]
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [x["iteration"] for x in lines if "bbox/AP" in x] == [1, 4]


def test_an_evaluation_alone_evaluates_the_average_too(in_process, load_tool, tmp_path):
    """Of a training's checkpoint; the same file gives it up to the converter."""
    folder, again = tmp_path / "training", tmp_path / "again"
    average = tmp_path / "average.pth"
    common = ["--config-file", CONFIG]
    settings = ["train.ema.enabled=True", "train.max_iter=4", "optimizer.lr=0.05"]
    assert in_process(*common, f"train.output_dir={folder}", *settings) == 0
    convert = load_tool("convert_checkpoint").main
    assert convert([str(folder / "model_final.pth"), str(average), "--ema"]) == 0

    def scores(folder, task):
        content = json.loads((folder / task / "coco_instances_results.json").read_text())
        return [detection["score"] for detection in content]

    def evaluate(file, *overrides):
        arguments = [f"train.init_checkpoint={file}", f"train.output_dir={again}", *overrides]
        assert in_process(*common, "--eval-only", *arguments) == 0
        return json.loads((again / "evaluation.json").read_text())["results"]

    raw, mean = (scores(folder, task) for task in ("inference", "inference_ema"))
    assert raw != mean
    results = evaluate(folder / "model_final.pth", "train.ema.enabled=True")
    assert results == json.loads((folder / "evaluation.json").read_text())["results"]
    assert scores(again, "inference") == raw and scores(again, "inference_ema") == mean
    assert evaluate(average).keys() == {"bbox"}
    assert scores(again, "inference") == mean
    # checkpoints of earlier versions have it under another name
    checkpoint = torch.load(folder / "model_final.pth")
    hooks = checkpoint["trainer"]["hooks"]
    hooks["MovingAverage"] = hooks.pop("EMAHook")
    torch.save(checkpoint, folder / "former.pth")
    former = tmp_path / "former_average.pth"
    assert convert([str(folder / "former.pth"), str(former), "--ema"]) == 0
    first, second = (torch.load(file)["model"] for file in (former, average))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert evaluate(folder / "former.pth", "train.ema.enabled=True") == results
    # a file without one is evaluated as it is
    assert evaluate(average, "train.ema.enabled=True").keys() == {"bbox"}
    assert f"{average} has no EMA weights" in (again / "log.txt").read_text()


def test_what_has_no_average_is_not_converted_as_one(load_tool, tmp_path, capsys):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "in.pth")
    arguments = [str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--ema"]
    assert load_tool("convert_checkpoint").main(arguments) == 1
    assert "in.pth has no EMA weights" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
