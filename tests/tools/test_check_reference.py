"""Parity with the published code, by the recorded vectors in tests/assets/reference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reference_comparison import LIMITS, compare_with_reference

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "assets" / "reference").glob("*.npz"))


@pytest.fixture
def tool(load_tool):
    return load_tool("check_reference")


def test_all_seven_cases_are_here():
    assert len(FILES) == 7


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_model_agrees_with_the_published_code(path):
    errors = compare_with_reference(path)
    assert errors.keys() == LIMITS.keys()
    for name, error in errors.items():
        assert error <= LIMITS[name], name


@pytest.mark.long
def test_compiled_it_agrees_too():
    torch._dynamo.reset()
    # with padding
    for name, error in compare_with_reference(FILES[0], compile=True).items():
        assert error <= LIMITS[name], name


def changed(tmp_path, name, change):
    with np.load(FILES[4]) as file:
        data = {key: file[key] for key in file.files}
    data[name] = change(data[name])
    path = tmp_path / "changed.npz"
    np.savez(path, **data)
    return path


@pytest.mark.parametrize(
    "name, change, kind",
    [
        ("state/input_proj.bias", lambda x: x + 0.01, "class logits"),
        ("out/pred_boxes", lambda x: x + 2e-4, "boxes"),
        ("out/key_position", lambda x: x + 2e-5, "key encoding"),
        ("loss/loss_giou_0", lambda x: x * 1.001, "losses"),
        ("match/1/0/query", lambda x: x[::-1], "matching"),
        ("grad/class_embed.weight", lambda x: x * 1.01, "gradients"),
        ("post/1/labels", lambda x: x + 1, "labels"),
        ("out/pred_logits", lambda x: x * np.nan, "class logits"),
    ],
)
def test_a_difference_is_found_and_named(tool, tmp_path, capsys, name, change, kind):
    path = changed(tmp_path, name, change)
    assert tool.main([str(FILES[0]), str(path)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(": ok")
    assert kind in second.split("OVER THE TOLERANCE:")[1]


def test_a_file_of_another_kind_is_named(tool, tmp_path, capsys):
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros(3))
    assert tool.main([str(other)]) == 1
    assert f"{other} is not a reference file" in capsys.readouterr().err
    lacking = changed(tmp_path, "state/refpoint_embed.weight", lambda x: x[:, :3])
    assert tool.main([str(lacking)]) == 1
    assert "refpoint_embed.weight is (12, 3)" in capsys.readouterr().err
