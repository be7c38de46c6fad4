"""Checkpoints of a training survive a process that is killed, and a disk that lies."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from dab_detr.checkpoint import Checkpointer
from dab_detr.errors import InputError


class Counter:
    """Something to save beside the model."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints, one a second later than the other, and what made them."""
    model, counter = nn.Linear(100, 100), Counter()
    checkpointer = Checkpointer(model, str(tmp_path), complete=True, trainer=counter)
    for number in (1, 2, 3):
        counter.value = number
        checkpointer.save(f"model_{number:07d}", iteration=number)
        os.utime(tmp_path / f"model_{number:07d}.pth", (number, number))
    return checkpointer, counter


def resumed(saved):
    checkpointer, counter = saved
    counter.value = 0
    path = checkpointer.resume()
    assert Path(path).name == f"model_{counter.value:07d}.pth"
    return counter.value


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    # in the middle of the weights
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def test_the_last_checkpoint_is_resumed(saved):
    assert resumed(saved) == 3


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(saved, tmp_path, damage, caplog):
    damage(tmp_path / "model_0000003.pth")
    assert resumed(saved) == 2
    assert "model_0000003.pth cannot be read" in caplog.text
    assert "Trying the previous checkpoint" in caplog.text
    damage(tmp_path / "model_0000002.pth")
    assert resumed(saved) == 1
    damage(tmp_path / "model_0000001.pth")
    with pytest.raises(InputError, match="No checkpoint in .* can be read"):
        resumed(saved)


def test_a_missing_mark_does_not_matter(saved, tmp_path):
    (tmp_path / "last_checkpoint").unlink()
    assert resumed(saved) == 3
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert resumed(saved) == 3


def test_what_was_saved_last_is_resumed_whatever_its_number(saved):
    saved[1].value = 0
    saved[0].save("model_0000000", iteration=0)
    assert resumed(saved) == 0


@pytest.mark.parametrize("moment", ["half written", "not yet renamed"])
def test_a_kill_during_the_writing_loses_nothing(saved, tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    def write_half(content, file):
        file.write(b"half")
        die()

    checkpointer, _ = saved
    with monkeypatch.context() as patch:
        if moment == "half written":
            patch.setattr("dab_detr.checkpoint.checkpointer.torch.save", write_half)
        else:
            patch.setattr("dab_detr.files.os.replace", die)
        # a killed process cleans nothing up either
        patch.setattr("dab_detr.files.Path.unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            checkpointer.save("model_0000003", iteration=4)
    assert list(tmp_path.glob(".model_0000003*"))
    assert resumed(saved) == 3
    checkpointer.save("model_0000003", iteration=4)
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_another_model_is_no_damage(saved, tmp_path):
    checkpointer = Checkpointer(nn.Linear(100, 50), str(tmp_path), complete=True)
    with pytest.raises(InputError, match="does not fit"):
        checkpointer.resume()


def test_the_best_weights_are_no_place_to_go_on_from(saved, tmp_path):
    torch.save({"model": nn.Linear(100, 100).state_dict()}, tmp_path / "model_best.pth")
    assert resumed(saved) == 3
    assert len(saved[0].checkpoints()) == 3


def weights_alone(path):
    torch.save({"model": nn.Linear(100, 100).state_dict()}, path)


@pytest.mark.parametrize("name", ["model_0000009.pth", "model_final.pth", "model_mine.pth"])
def test_weights_alone_are_nothing_to_resume_from(saved, tmp_path, name, caplog):
    weights_alone(tmp_path / name)
    (tmp_path / "last_checkpoint").write_text(name)
    assert resumed(saved) == 3
    words = "A training cannot be resumed from weights without its state"
    assert words in caplog.text and f"{tmp_path / name}." in caplog.text


def numbers(folder):
    """Of the checkpoints that hold a training."""
    return [
        int(path.stem[6:])
        for path in sorted(folder.glob("model_00000??.pth"))
        if "trainer" in torch.load(path)
    ]


def test_only_checkpoints_of_the_training_are_removed(saved, tmp_path):
    """Also after two resumes, beside files of the user with all sorts of names."""
    mine = [
        "model_before.pth", "model_0000000.pth", "model_20240501.pth", "model_000001.pth",
        "model_0000002_ap42.pth", "model_best.pth", "last.pth",
    ]  # fmt: skip
    for name in mine:
        weights_alone(tmp_path / name)
    copy = tmp_path / "model_backup.pth"
    copy.write_bytes((tmp_path / "model_0000001.pth").read_bytes())
    os.utime(copy, (0, 0))
    for first in (4, 6):
        counter = Counter()
        checkpointer = Checkpointer(
            saved[0].model, str(tmp_path), complete=True, max_to_keep=2, trainer=counter
        )
        checkpointer.resume()
        assert counter.value == first - 1
        for counter.value in (first, first + 1):
            checkpointer.save(f"model_{counter.value:07d}", iteration=counter.value)
            assert numbers(tmp_path) == [counter.value - 1, counter.value]
        checkpointer.save("model_final", iteration=counter.value)
    assert copy.is_file() and all((tmp_path / name).is_file() for name in mine)


def test_a_lower_limit_holds_from_the_next_checkpoint_on(saved, tmp_path):
    checkpointer, counter = saved
    again = Checkpointer(checkpointer.model, str(tmp_path), complete=True, max_to_keep=1,
                         trainer=counter)  # fmt: skip
    again.resume()
    again.save("model_0000004", iteration=4)
    assert numbers(tmp_path) == [4]


def test_resumed_from_further_back_the_steps_beyond_are_removed_first(saved, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    checkpointer, counter = saved
    again = Checkpointer(checkpointer.model, str(tmp_path), complete=True, max_to_keep=2,
                         trainer=counter)  # fmt: skip
    again.resume()
    again.save("model_0000002", iteration=2)
    assert numbers(tmp_path) == [1, 2]


def test_files_that_someone_else_has_removed_do_not_count(saved, tmp_path):
    checkpointer, _ = saved
    checkpointer.max_to_keep = 2
    (tmp_path / "model_0000003.pth").unlink()
    checkpointer.save("model_0000004", iteration=4)
    assert numbers(tmp_path) == [2, 4]
