"""A training that goes on: its rows, its place in the data, what its checkpoint holds."""

import copy
import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.engine import default_setup
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dab_detr.config import get_config
from dab_detr.data.loader import build_train_loader
from dab_detr.engine import evaluation
from dab_detr.engine.progress import ProgressPrinter
from dab_detr.engine.trainer import Trainer
from dab_detr.engine.training import train
from dab_detr.engine.writers import CSVWriter, Writers
from dab_detr.errors import InputError

CONFIG = Path(__file__).parents[1] / "assets" / "own_config.py"


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
            patch.setattr(evaluation, "evaluate", evaluate)
            if die is not None:
                # a killed process cleans nothing up
                if die[0] != "failure" and die != ("evaluation", cfg.train.max_iter):
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
    in_step = (Trainer, "run_step")
    places = {"step": in_step, "failure": in_step, "rows": (Writers, "after_step")}
    place = places.get(moment)
    if place is None:
        return
    original = getattr(*place)

    def die(self, *args):
        iteration = self.iter if place == in_step else self.trainer.iter
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
    # of one second and process, files are told apart by a number; they are read by their names
    for file in folder.glob("events.out.tfevents.*"):
        start, _, number = file.name.rpartition(".")
        file.rename(folder / f"{start}.{int(number):06d}")
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
        # writers then write what they have
        [("failure", 6), ("failure", 12)],
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


@pytest.fixture
def seen(monkeypatch):
    """Each step's images, in order, by micro-batch."""
    seen = {}
    original = Trainer._backward

    def note(trainer, batch, *args):
        seen.setdefault(trainer.iter, []).append([Path(x["file_name"]).name for x in batch])
        return original(trainer, batch, *args)

    monkeypatch.setattr(Trainer, "_backward", note)
    return seen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_data_go_on_where_they_were(run, tmp_path, seen, accumulate):
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


def test_grouping_by_aspect_ratio_is_not_exact_and_says_so(run, tmp_path, caplog):
    grouped = ["dataloader.train.aspect_ratio_grouping=True"]
    run(tmp_path, "train.max_iter=1", *grouped)
    assert "in another order" not in caplog.text
    run(tmp_path, "train.max_iter=2", *grouped, resume=True)
    assert "a resumed training sees the images in another order" in caplog.text


def test_the_stream_goes_on_whatever_the_number_of_workers(
    datasets_root, monkeypatch, forget_tiny, tmp_path
):
    """After 15 images, which two workers cannot have seen together."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))

    def images(samples, count):
        forget_tiny()
        cfg = get_config(CONFIG, [f"train.output_dir={tmp_path}"])
        records = instantiate(cfg.dataloader.train.dataset)
        batches = iter(build_train_loader(cfg, records, 0, samples))
        return [x["file_name"] for _ in range(count) for x in next(batches)]

    stream = images(0, 8)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    for rank, first in ((0, 16), (1, 15)):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        assert images(15, 4) == stream[first::2][:8]


def logged(folder, name):
    return {x["iteration"]: x[name] for x in rows(folder) if "total_loss" in x}


BY_EPOCHS = [
    "train.max_iter=null", "train.epochs=2", "train.log_period=1", "train.checkpointer.period=8",
    "train.eval_period=100", "lr_multiplier.warmup_length=0.01",
]  # fmt: skip


def test_another_batch_size_goes_on_with_the_images_that_are_left(run, tmp_path, seen, caplog):
    """Half of the training in steps of 4 images, the other half in steps of 8."""
    run(tmp_path / "whole", *BY_EPOCHS)
    stream = [x for step in sorted(seen) for batch in seen[step] for x in batch]
    run(tmp_path / "changed", *BY_EPOCHS, die=("step", 9))
    seen.clear()
    changed = [*BY_EPOCHS, "dataloader.train.total_batch_size=8"]
    run(tmp_path / "changed", *changed, resume=True)
    assert [x for step in sorted(seen) for batch in seen[step] for x in batch] == stream[32:]
    assert sorted(seen) == [8, 9, 10, 11]
    before, after = (logged(tmp_path / x, "lr") for x in ("whole", "changed"))
    # the share that is done at each step decides
    assert list(after) == list(range(12))
    assert [after[i] for i in range(8, 12)] == pytest.approx([before[i] for i in (8, 10, 12, 14)])
    (sentence,) = re.findall(r"was made with other settings: (.*)", caplog.text)
    assert sentence == (
        "dataloader.train.total_batch_size 4 -> 8. 32 images have been seen, 50.0 % of the "
        "training; 4 steps of 8 images are left, and the learning rate continues at 0.001, as "
        "before."
    )


def test_the_speed_that_is_printed_is_that_of_the_new_steps(caplog):
    caplog.set_level("INFO", logger="dab_detr.engine.progress")
    with EventStorage(4) as storage:
        # two steps of before the stop, which the checkpoint has brought back
        for iteration, seconds in ((2, 100.0), (3, 100.0), (4, 1.0), (5, 3.0)):
            storage.put_scalar("time", seconds, cur_iter=iteration)
        storage.iter = 5
        storage.put_scalars(total_loss=7.0, data_time=0.5, smoothing_hint=False)
        ProgressPrinter(8, 16, start_iter=4).write()
    assert "step 6/8 | loss 7.000 | 8 images/s | data wait 25 %" in caplog.text


def test_a_longer_training_goes_on_as_if_it_had_been_so_long(run, tmp_path, caplog):
    whole = ["train.max_iter=8", "train.eval_period=2"]
    short = ["train.max_iter=5", "train.eval_period=2"]
    run(tmp_path / "whole", *whole)
    assert run(tmp_path / "longer", *short) == [2, 4, 5]
    caplog.clear()
    assert run(tmp_path / "longer", *whole, resume=True) == [5, 6, 8]
    first, second = (logged(tmp_path / x, "lr") for x in ("whole", "longer"))
    assert {i: second[i] for i in (5, 6, 7)} == {i: first[i] for i in (5, 6, 7)}
    assert (
        "train.max_iter 5 -> 8. 20 images have been seen, 62.5 % of the training; 3 steps"
        in caplog.text
    )
    assert "continues at 0.001 instead of 0.0001." in caplog.text
    # each iteration once, and each evaluation
    iterations = [x["iteration"] for x in rows(tmp_path / "longer")]
    assert iterations == sorted(set(iterations))
    evaluated = {x["iteration"]: x["bbox/AP"] for x in rows(tmp_path / "longer") if "bbox/AP" in x}
    assert evaluated == {1: 12, 3: 14, 4: 15, 5: 16, 8: 18}


def test_an_evaluation_between_two_logs_keeps_its_row(run, tmp_path):
    settings = ["train.eval_period=4", "train.log_period=3"]
    run(tmp_path, "train.max_iter=6", *settings)
    before = [x for x in rows(tmp_path) if x["iteration"] < 5]
    assert [x["iteration"] for x in before] == [2, 3] and "bbox/AP" in before[1]
    run(tmp_path, "train.max_iter=8", *settings, resume=True)
    assert rows(tmp_path)[: len(before)] == before


@pytest.mark.parametrize("missing", [False, True], ids=["", "killed before the last file"])
def test_a_training_that_is_done_is_evaluated_once_more(run, tmp_path, caplog, missing):
    caplog.set_level("INFO", logger="dab_detr")
    settings = ["train.max_iter=3", "train.checkpointer.period=1"]
    run(tmp_path, *settings)
    before = rows(tmp_path), (tmp_path / "model_final.pth").read_bytes()
    if missing:
        (tmp_path / "model_final.pth").unlink()
        (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    for _ in range(2):
        assert run(tmp_path, *settings, resume=True) == [3]
        assert "All 3 steps of this training are done" in caplog.text
        assert rows(tmp_path) == before[0]
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        final = torch.load(tmp_path / "model_final.pth")
        assert final["iteration"] == 2 and final.keys() == torch.load(io.BytesIO(before[1])).keys()


def test_a_shorter_training_is_refused_and_nothing_is_lost(run, tmp_path):
    run(tmp_path, "train.max_iter=5")
    files = {x: x.read_bytes() for x in tmp_path.glob("*") if x.suffix in (".pth", ".json")}
    with pytest.raises(InputError, match="train.max_iter=3 asks for 3 steps"):
        run(tmp_path, "train.max_iter=3", resume=True)
    assert {x: x.read_bytes() for x in tmp_path.glob("*") if x.suffix in (".pth", ".json")} == files


def test_the_training_of_another_program_is_refused(run, tmp_path):
    """As Detectron2's own program for such configs writes it."""
    run(tmp_path, "train.max_iter=2", "train.log_period=1")
    path = tmp_path / "model_final.pth"
    checkpoint = torch.load(path)
    names = ("iteration", "hooks", "optimizer")
    checkpoint["trainer"] = {name: checkpoint["trainer"][name] for name in names}
    torch.save({name: checkpoint[name] for name in ("model", "trainer", "iteration")}, path)
    words = f"is of another program.*: train.init_checkpoint={path}."
    with pytest.raises(InputError, match=words):
        run(tmp_path, "train.max_iter=4", resume=True)
    # which is what it says
    run(tmp_path / "other", "train.max_iter=1", f"train.init_checkpoint={path}")


def test_a_checkpoint_with_the_former_names_of_hooks_can_be_resumed(run, tmp_path):
    settings = ["train.max_iter=4", "train.checkpointer.period=2", "train.ema.enabled=True"]
    run(tmp_path, *settings)
    final, path = tmp_path / "model_final.pth", tmp_path / "model_0000001.pth"
    expected = torch.load(final)["trainer"]["hooks"]["EMAHook"]
    checkpoint = torch.load(path)
    hooks = checkpoint["trainer"]["hooks"]
    for former, current in (("History", "MetricHistory"), ("MovingAverage", "EMAHook")):
        hooks[former] = hooks.pop(current)
    torch.save(checkpoint, path)
    (tmp_path / "last_checkpoint").write_text(path.name)
    run(tmp_path, *settings, resume=True)
    resumed = torch.load(final)["trainer"]["hooks"]["EMAHook"]
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
