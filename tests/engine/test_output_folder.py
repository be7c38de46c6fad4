"""One run at a time in a folder, and nothing that an earlier one left is lost."""

import contextlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest

from dab_detr.engine.launching.output_folder import OutputFolder
from dab_detr.errors import InputError

CONFIG = Path(__file__).parents[1] / "assets" / "own_config.py"


def hold(folder, pipe):
    with OutputFolder(folder).held():
        # like a data worker, which outlives its parent when that is killed
        worker = os.fork()
        if worker == 0:
            signal.pause()
        pipe.send(worker)
        pipe.recv()


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder ``out``, and a way to let it end by itself."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=hold, args=(tmp_path / "out", theirs)
    )
    process.start()
    worker = mine.recv()
    yield process, lambda: mine.send(True)
    process.kill()
    os.kill(worker, signal.SIGKILL)


@pytest.fixture
def run(in_process, tmp_path):
    """Runs the own config in ``out`` and returns the exit code."""

    def call(*arguments):
        return in_process("--config-file", str(CONFIG), f"train.output_dir={tmp_path / 'out'}",
                          "train.max_iter=1", *arguments)  # fmt: skip

    return call


def test_a_folder_in_use_is_refused_until_its_process_is_gone(
    holder, run, tmp_path, capsys, own_data
):
    process, _ = holder
    out = tmp_path / "out"
    data = [x for part in ("train", "val") for x in (f"--{part}-data", *own_data(part))]
    for further in ([], data, ["--eval-only", f"train.init_checkpoint={CONFIG}"], ["--resume"]):
        assert run(*further) == 1
        *_, last = capsys.readouterr().err.strip().splitlines()
        assert f"Process {process.pid} of " in last and f"in {out}: wait" in last
    assert os.listdir(out) == [".lock"]
    process.kill()
    process.join()
    assert run() == 0


def test_a_folder_is_free_after_a_run(run, holder, tmp_path):
    process, let_go = holder
    let_go()
    process.join()
    assert (tmp_path / "out" / ".lock").read_text() == ""
    assert run() == 0
    OutputFolder(tmp_path / "out").require_free()


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with OutputFolder(tmp_path).held():
        pass
    assert f"{tmp_path} cannot be locked (No locks available)" in caplog.text


def content_of(folder):
    """The files of a training by name, without those that were set aside."""
    files = {x.relative_to(folder): x for x in folder.rglob("*") if x.is_file()}
    return {k: x.read_bytes() for k, x in files.items() if not k.parts[0].startswith("previous")}


def test_what_earlier_trainings_left_is_kept(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    own = out / "model_mine.pth"
    own.write_text("the user's")
    left = []
    for seed in (1, 2, 3):
        code = run(f"train.seed={seed}", "train.pictures.count=1", "train.pictures.tensorboard=1")
        assert code == 0
        left.append(content_of(out))
    assert own.read_text() == "the user's"
    # what is evaluated against depends on the data alone, and belongs to all
    shared = {Path(own.name), Path(".lock")}
    for index, name in enumerate(("previous", "previous-2")):
        kept = content_of(out / name)
        expected = {k: v for k, v in left[index].items() if k not in shared}
        assert kept == expected
        assert b"seed: %d" % (index + 1) in kept[Path("config.yaml")]
        assert kept[Path("log.txt")].count(b"Full config saved") == 1
    assert left[2][Path("log.txt")].count(b"Full config saved") == 1
    assert len([x for x in left[2] if "tfevents" in x.name]) == 1


def test_a_start_that_fails_leaves_the_results_where_they_are(run, tmp_path):
    out = tmp_path / "out"
    assert run() == 0
    before = {name: x for name, x in content_of(out).items() if name.suffix in (".pth", ".json")}
    assert run("model.num_classes=2") == 1
    assert run("train.init_checkpoint=none.pth") == 1
    assert not list(out.glob("previous*"))
    assert before.items() <= content_of(out).items()
    assert run("train.max_iter=2", "--resume") == 0
    rows = [json.loads(x) for x in (out / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "total_loss" in row] == [0, 1]


@pytest.mark.parametrize("place", ["file/out", "/proc/out", "/dev/null"])
def test_a_folder_that_cannot_be_written_is_named(run, tmp_path, capsys, place):
    (tmp_path / "file").touch()
    place = tmp_path / place
    assert run(f"train.output_dir={place}") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert str(place) in last and "Traceback" not in last


def test_a_second_lock_in_between_is_seen_too(holder, tmp_path):
    with contextlib.suppress(InputError), OutputFolder(tmp_path / "out").held():
        raise AssertionError("both are in the folder")


@contextlib.contextmanager
def limited_files(size):
    """Inside, the system lets no file grow beyond this size, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# the weights fit, but not the optimizer's state; the metrics, but no weights
def test_a_disk_without_room_for_a_checkpoint_is_refused_before_the_first_step(
    in_process, tmp_path, monkeypatch, capsys
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert in_process("--config-file", str(CONFIG), f"train.output_dir={tmp_path / 'out'}") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.search(
        r"out has 0.0 MB of free disk space, but a checkpoint needs at least \d\.\d MB", last
    )
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize("size", [2_000_000, 1_000_000])
def test_a_full_disk_ends_with_a_sentence_and_whole_checkpoints(run, tmp_path, capsys, size):
    out = tmp_path / "out"
    assert run() == 0
    before = {x: (out / x).read_bytes() for x in ("model_final.pth", "last_checkpoint")}
    assert (out / "model_best.pth").stat().st_size < 2_000_000 < len(before["model_final.pth"])
    with limited_files(size):
        assert run("train.max_iter=2", "--resume") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith(f"train_net.py: {out}/model_")
    assert ".pth cannot be written (File too large)" in last
    assert "Traceback" not in (out / "log.txt").read_text()
    assert not list(out.glob(".*unfinished"))
    assert {x: (out / x).read_bytes() for x in before} == before
    assert run("train.max_iter=2", "--resume") == 0


def test_metrics_that_cannot_be_appended_to_end_with_a_sentence(run, tmp_path, capfd, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dab_detr.engine.writers.MetricsWriter.write", full)
    assert run() == 1
    *_, last = capfd.readouterr().err.strip().splitlines()
    assert f"train_net.py: {tmp_path / 'out'} cannot be written (No space left on device)" in last
    assert "Traceback" not in (tmp_path / "out" / "log.txt").read_text()
