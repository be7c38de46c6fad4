"""One batch gives one gradient, however it is divided: among micro-batches, processes, in time."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import torch
from trainings import TORCHRUN, assert_equal, rows

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "assets" / "exact_config.py"
TRAIN = ROOT / "train_net.py"
PYTHON = [sys.executable, "-W", "ignore", str(TRAIN)]


@pytest.fixture(scope="module")
def environment(datasets_root):
    # processes that wait for each other should not also compete for the cores
    return {**os.environ, "DETECTRON2_DATASETS": str(datasets_root), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def weights(environment, tmp_path_factory):
    """A function that trains in a process of its own and returns the final checkpoint."""

    def train(*arguments, program=TRAIN):
        folder = tmp_path_factory.mktemp("run")
        options = [x for x in arguments if x.startswith("-") or "=" not in x]
        overrides = [x for x in arguments if x not in options]
        command = ["--config-file", str(CONFIG), *options, f"train.output_dir={folder}", *overrides]
        if program == TRAIN:
            result = programs.run(program, *command, env=environment)
        else:
            result = subprocess.run(
                [*program, *command], capture_output=True, text=True, env=environment
            )
        assert result.returncode == 0, result.stderr
        return torch.load(folder / "model_final.pth", weights_only=True)["model"]

    return train


@pytest.fixture(scope="module")
def whole_batch(weights):
    """Weights before, and after three steps of 16 images in one process."""
    return weights("optimizer.lr=0.0"), weights()


DIVISIONS = {
    "4 micro-batches of 4": (["train.accumulate=4"], TRAIN),
    "2 processes of 8": (["--num-gpus", "2", "--dist-url", "auto"], TRAIN),
    "2 processes of 8, compiled": (
        ["--num-gpus", "2", "--dist-url", "auto", "train.compile=True"],
        TRAIN,
    ),
    "2 processes of torchrun, 4 micro-batches of 2 each": (
        ["train.accumulate=4"],
        [*TORCHRUN, str(TRAIN)],
    ),
    "2 data workers": (["dataloader.train.num_workers=2"], TRAIN),
}


# a C++ compiler is run a hundred times; torchrun starts a new Python for each
LONG = {"2 processes of 8, compiled", "2 processes of torchrun, 4 micro-batches of 2 each"}


@pytest.mark.parametrize(
    "division",
    [pytest.param(x, marks=[pytest.mark.long] if x in LONG else []) for x in DIVISIONS],
)
def test_a_divided_batch_moves_the_weights_as_the_whole_one(weights, whole_batch, division):
    before, whole = whole_batch
    arguments, program = DIVISIONS[division]
    divided = weights(*arguments, program=program)
    moved = 0
    for name, start in before.items():
        # a softmax does not see its keys' bias, whose gradient is rounding alone
        other = name.replace("self_attention.key_proj.bias", "self_attention.query_proj.bias")
        scale = (whole[other] - before[other]).norm()
        # the last bits of the weights themselves
        rounding = 1e-6 * start.norm()
        assert (divided[name] - whole[name]).norm() <= 1e-5 * scale + rounding, name
        moved += bool(scale > 100 * rounding)
    assert moved > 50


EXACT = [
    "train.max_iter=12",
    "train.checkpointer.period=2",
    "train.eval_period=6",
    "train.ema.enabled=True",
    "model.transformer.encoder.dropout=0.1",
    "dataloader.train.num_workers=1",
]


class Run:
    """A training in a process of its own that can be watched and killed.

    With ``python`` it is a new Python, not forked.
    """

    def __init__(self, folder, environment, *arguments, python=False):
        self.folder = folder
        options = [x for x in arguments if "=" not in x]
        overrides = [x for x in arguments if "=" in x]
        command = ["--config-file", str(CONFIG), *options]
        command += [f"train.output_dir={folder}", *EXACT, *overrides]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment}
        if python:
            self.process = subprocess.Popen([*PYTHON, *command], text=True, **streams)
        else:
            self.process = programs.Program(TRAIN, command, **streams)
        self.output = ""

    def until(self, step):
        """Read on until the step is reported; False if the training ended before."""
        for line in self.process.stdout:
            self.output += line
            if f"step {step}/" in line:
                return True
        return False

    def end(self):
        self.output += self.process.stdout.read()
        return self.process.wait()

    def signal(self, signum):
        self.process.send_signal(signum)
        return self.end()


@pytest.fixture(scope="module")
def unstopped(environment, tmp_path_factory):
    # another Python than that of the others, with other hashes and so another order of sets
    run = Run(tmp_path_factory.mktemp("unstopped"), environment, python=True)
    assert run.end() == 0, run.output
    return run.folder


def assert_same_training(folder, expected):
    first, second = (torch.load(f / "model_final.pth") for f in (folder, expected))
    assert {"optimizer", "grad_scaler", "hooks"} <= first["trainer"].keys()
    assert {"EMAHook", "Evaluation", "MetricHistory"} <= first["trainer"]["hooks"].keys()
    assert_equal(first, second)
    records = [rows(f) for f in (folder, expected)]
    assert [x["iteration"] for x in records[0]] == list(range(13))
    assert_equal(*records)
    results = [json.loads((f / "evaluation.json").read_text()) for f in (folder, expected)]
    assert results[0] == results[1] and {"bbox", "bbox_ema"} <= results[0]["results"].keys()


def test_a_training_killed_at_any_step_ends_as_if_it_had_not_been(environment, unstopped, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed of the steps: {seed}")
    steps = sorted(random.Random(seed).sample(range(1, 12), 2))
    for number, step in enumerate(steps):
        run = Run(tmp_path, environment, *(["--resume"] if number else []))
        assert run.until(step), run.output
        # during this step's checkpoint or evaluation, or in one of the next steps
        assert run.signal(signal.SIGKILL) == -signal.SIGKILL
    run = Run(tmp_path, environment, "--resume")
    assert run.end() == 0, run.output
    assert_same_training(tmp_path, unstopped)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_saves_and_says_how_to_go_on(environment, unstopped, tmp_path, signum):
    run = Run(tmp_path, environment)
    assert run.until(3), run.output
    assert run.signal(signum) == 128 + signum
    assert "Traceback" not in run.output
    assert f"Stopped by {signum.name}. The training is saved in {tmp_path}" in run.output
    last = (tmp_path / "last_checkpoint").read_text()
    reached = max(map(int, re.findall(r"step (\d+)/", run.output)))
    assert last == f"model_{reached - 1:07d}.pth"
    run = Run(tmp_path, environment, "--resume")
    assert run.end() == 0, run.output
    assert f"Resuming after step {reached}." in run.output
    assert_same_training(tmp_path, unstopped)


TOGETHER = ["--num-gpus", "2", "--dist-url", "auto"]


def test_two_processes_go_on_exactly_too(environment, tmp_path):
    """From the checkpoint of a step that was evaluated, and was the best so far."""
    # the checkpoint of step 6 holds the sums of two steps of both processes
    keep = ["train.checkpointer.max_to_keep=9", "train.log_period=4"]
    run = Run(tmp_path, environment, *TOGETHER, *keep)
    assert run.end() == 0, run.output
    whole = torch.load(tmp_path / "model_final.pth")
    expected = [x for x in rows(tmp_path) if "total_loss" in x]
    (tmp_path / "evaluation.json").write_text('{"step": 6, "results": {"bbox": {"AP": 99.0}}}')
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    run = Run(tmp_path, environment, *TOGETHER, "--resume", *keep)
    assert run.end() == 0, run.output
    assert "Resuming after step 6." in run.output
    assert run.output.count("The best AP so far, of bbox:") == 1
    resumed = torch.load(tmp_path / "model_final.pth")
    # without the evaluation, whose result the test has replaced
    logged = [x for x in rows(tmp_path) if "total_loss" in x]
    assert [x["iteration"] for x in logged] == [3, 7, 11]
    assert_equal(
        *([{k: v for k, v in x.items() if "bbox/" not in k} for x in y] for y in (logged, expected))
    )
    for part in ("model", "trainer"):
        first, second = (x[part] for x in (whole, resumed))
        if part == "trainer":
            first, second = ([x["optimizer"], x["hooks"]["EMAHook"]] for x in (first, second))
        assert_equal(first, second)


def test_a_signal_to_the_launcher_reaches_its_processes(environment, tmp_path):
    run = Run(tmp_path, environment, *TOGETHER)
    assert run.until(3), run.output
    assert run.signal(signal.SIGTERM) == 128 + signal.SIGTERM
    assert (tmp_path / "last_checkpoint").is_file()
    run = Run(tmp_path, environment, *TOGETHER, "--resume")
    assert run.end() == 0, run.output
    assert "Resuming after step" in run.output
