"""A signal to any of several processes, at any moment, ends all of them as it would end one.

Processes come to a moment of ``tests/assets/held_config.py`` and wait there in a pipe until the
signals have been sent.
"""

import os
import re
import select
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from programs import Program
from trainings import TORCHRUN, assert_equal, rows

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "assets" / "held_config.py"
PROGRAM = ROOT / "train_net.py"
TERM, INT, USR2 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR2
# what PyTorch says where there is CUDA but no GPU, and of what Detectron2 calls
FOREIGN = r".*No CUDA runtime is found.*\n|.*FutureWarning: .*\n  .*\n"


class Run:
    """Processes that write into one folder, and the pipes in which they wait.

    Args:
        folder: gets the pipes, what the processes print, and their output as ``output``.
    """

    def __init__(self, folder, datasets_root):
        self.output = folder / "output"
        self._folder = folder
        self._environment = {
            **os.environ,
            "DETECTRON2_DATASETS": str(datasets_root),
            "HOLD_FOLDER": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        self._pipes = {}
        for name in ("reached", "go_0", "go_1"):
            os.mkfifo(folder / name)
            # neither waits for the other end nor meets one
            self._pipes[name] = os.open(folder / name, os.O_RDWR)
        self.processes = []

    def start(self, moment, *arguments, size=2):
        """Start the processes of a group, as torchrun does; or one process alone."""
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        self.processes, self._files = [], []
        for rank in range(size):
            variables = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
                "MASTER_ADDR": "localhost", "MASTER_PORT": port,
            }  # fmt: skip
            env = {k: str(v) for k, v in variables.items()} if size > 1 else {}
            files = [open(self._folder / f"{name}_{rank}", "w+") for name in ("out", "err")]
            self._files.append(files)
            self.processes.append(
                Program(
                    PROGRAM,
                    self._command_line(*arguments),
                    stdout=files[0],
                    stderr=files[1],
                    env={**self._environment, **env, "HOLD": moment},
                )
            )

    def start_torchrun(self, moment):
        return subprocess.Popen(
            [*TORCHRUN, PROGRAM, *self._command_line()],
            env={**self._environment, "HOLD": moment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _command_line(self, *arguments):
        options = [x for x in arguments if x.startswith("-")]
        overrides = [x for x in arguments if not x.startswith("-")]
        return ["--config-file", CONFIG, *options, f"train.output_dir={self.output}", *overrides]

    def wait_for(self, ranks):
        """Until these have come to the moment; returns the processes' numbers by rank."""
        lines = ""
        while lines.count("\n") < len(ranks):
            assert select.select([self._pipes["reached"]], [], [], 120)[0], "none came there"
            lines += os.read(self._pipes["reached"], 99).decode()
        found = dict(line.split() for line in lines.splitlines())
        assert sorted(found) == sorted(ranks)
        return {int(rank): int(pid) for rank, pid in found.items()}

    def release(self, ranks):
        for rank in ranks:
            os.write(self._pipes[f"go_{rank}"], b"\n")

    def end(self):
        """Exit codes, and what was printed, by rank: on stdout and on stderr."""
        codes = [process.wait() for process in self.processes]
        texts = []
        for file in [file for files in self._files for file in files]:
            file.seek(0)
            texts.append(re.sub(FOREIGN, "", file.read()))
            file.close()
        return codes, texts[::2], texts[1::2]

    def close(self):
        for process in self.processes:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
        for pipe in self._pipes.values():
            os.close(pipe)


@pytest.fixture
def run(tmp_path, datasets_root):
    run = Run(tmp_path, datasets_root)
    yield run
    run.close()


@pytest.fixture(scope="module")
def unstopped(datasets_root, tmp_path_factory):
    """The folder of a training with all its checkpoints."""
    run = Run(tmp_path_factory.mktemp("unstopped"), datasets_root)
    run.start("", "train.checkpointer.period=1")
    codes, _, errors = run.end()
    run.close()
    assert codes == [0, 0], errors
    assert errors == ["", ""]
    return run.output


def sentence(signum, how_to_continue):
    return f"train_net.py: Stopped by {signum.name}. {how_to_continue}\n"


def goes_on(run):
    return f"The training is saved in {run.output}; run the same command with --resume to continue."


def assert_stopped(run, signum, how_to_continue):
    codes, _, errors = run.end()
    assert codes == [128 + signum] * len(codes), errors
    assert errors == [sentence(signum, how_to_continue), *[""] * (len(codes) - 1)]


def test_a_training_goes_on_as_if_it_had_not_been_stopped(run, unstopped):
    """Stopped while the first process computes and the other waits in a collective."""
    run.start("numbers:0")
    run.wait_for("0")
    run.processes[1].send_signal(TERM)
    assert_stopped(run, TERM, goes_on(run))
    run.start("", "--resume")
    codes, texts, _ = run.end()
    assert codes == [0, 0]
    assert "Resuming after step 2." in texts[0]
    assert_equal(rows(run.output), rows(unstopped))
    assert_equal(*(torch.load(x / "model_final.pth") for x in (run.output, unstopped)))


# who gets which signal, and the one that all end by
FIRST = {0: TERM}, TERM
ANOTHER = {1: INT}, INT
BOTH = {1: USR2, 0: TERM}, USR2
# what is saved is the step after which; None: that depends on which process is sooner
CASES = {
    "set-up, another": ("set-up:01", *ANOTHER, 1),
    "step, the first": ("step:01", *FIRST, None),
    "step, both": ("step:01", *BOTH, None),
    "checkpoint, the first": ("checkpoint:0", *FIRST, None),
    "checkpoint, another": ("checkpoint:0", *ANOTHER, None),
    "inference, another": ("inference:01", *ANOTHER, 2),
    "inference, both": ("inference:01", *BOTH, 2),
    "inference of another, the first, which waits": ("inference:1", *FIRST, 2),
    "numbers, the first": ("numbers:0", *FIRST, 2),
    "numbers, both": ("numbers:0", *BOTH, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_is_saved_once(run, unstopped, case):
    moment, signals, signum, expected = CASES[case]
    # the moment of a checkpoint is of one that is written without a signal
    periodic = ["model_0000001.pth"] if moment == "checkpoint:0" else []
    run.start(moment, f"train.checkpointer.period={2 if periodic else 100}")
    ranks = moment.partition(":")[2]
    run.wait_for(ranks)
    for rank, number in signals.items():
        run.processes[rank].send_signal(number)
    if not moment.startswith(("inference", "numbers")):
        run.release(ranks)
    assert_stopped(run, signum, goes_on(run))
    last = (run.output / "last_checkpoint").read_text()
    assert expected is None or last == f"model_{expected - 1:07d}.pth"
    files = sorted(path.name for path in run.output.glob("model_*"))
    assert files == sorted({last, *periodic})
    saved = re.findall(r"Saving checkpoint to \S+/(\S+)", (run.output / "log.txt").read_text())
    assert saved == [*periodic, last]
    for name in files:
        # whose training goes on as the one that was not stopped
        assert_equal(torch.load(run.output / name), torch.load(unstopped / name))


@pytest.mark.parametrize(
    "moment, hit, size", [("inference:1", 1, 2), ("numbers:0", 0, 2), ("numbers:0", 0, 1)]
)
def test_an_evaluation_alone_ends(run, unstopped, moment, hit, size):
    weights = f"train.init_checkpoint={unstopped / 'model_final.pth'}"
    run.start(moment, "--eval-only", weights, size=size)
    run.wait_for(moment.partition(":")[2])
    run.processes[hit].send_signal(TERM)
    assert_stopped(run, TERM, "Run the same command to evaluate again.")


def test_a_launcher_ends_as_its_processes_do(run):
    run.start("inference:01", "--num-gpus=2", size=1)
    os.kill(run.wait_for("01")[1], USR2)
    assert_stopped(run, USR2, goes_on(run))


def test_a_launcher_tells_of_a_process_that_was_killed(run):
    run.start("inference:01", "--num-gpus=2", size=1)
    os.kill(run.wait_for("01")[1], signal.SIGKILL)
    codes, _, (errors,) = run.end()
    assert codes == [128 + signal.SIGKILL]
    # the first process is ended with a signal on which it saves
    assert errors == sentence(TERM, goes_on(run)) + sentence(
        signal.SIGKILL,
        "It has ended process 1, without which the others cannot continue. --resume continues a "
        "training from its last checkpoint.",
    )
    assert (run.output / "last_checkpoint").read_text() == "model_0000001.pth"


def test_torchruns_processes_end_with_one_code(run):
    torchrun = run.start_torchrun("inference:01")
    os.kill(run.wait_for("01")[1], TERM)
    _, errors = torchrun.communicate()
    assert errors.count(sentence(TERM, goes_on(run))) == 1
    # of both, in its report
    assert re.findall(r"exitcode +: (\d+)", errors) == ["143", "143"]
