"""tools/convert_checkpoint.py, and that what it interrupts stays whole."""

from pathlib import Path

import pytest
import torch
from published import random_checkpoint, save_official

from dab_detr.checkpoint.conversion import to_dab_detr
from dab_detr.checkpoint.reading import read_checkpoint

CLASS_HEAD = "transformer.decoder.class_head.weight"


@pytest.fixture
def tool(load_tool):
    return load_tool("convert_checkpoint")


@pytest.fixture(scope="module")
def official():
    return random_checkpoint("official_r50")


def test_the_tool_refuses_what_it_cannot_write(tool, official, tmp_path, capsys):
    main = tool.main
    source = save_official(official, tmp_path / "in.pth")
    (tmp_path / "folder.pth").mkdir()
    resnet = tmp_path / "resnet.pth"
    state = {k: v for k, v in to_dab_detr(official).state.items() if k.startswith("backbone.")}
    torch.save({k.removeprefix("backbone."): v for k, v in state.items()}, resnet)
    empty = tmp_path / "empty.pth"
    torch.save({"model": {"x": "text"}}, empty)
    for arguments, words in (
        ([source, tmp_path / "out.onnx"], "has to end in .pth"),
        ([source, tmp_path / "folder.pth", "--force"], "directory without config.json"),
        ([resnet, tmp_path / "out.pth", "--to", "official"], "not for a backbone"),
        ([resnet, tmp_path / "out.pth", "--num-classes", "80"], "no classes to change"),
        ([empty, tmp_path / "out.pth"], "is not a dictionary of tensors: 'x' is a str"),
    ):
        assert main([str(a) for a in arguments]) == 1
        assert words in capsys.readouterr().err
    assert main([str(resnet), str(tmp_path / "out.pth")]) == 0


def test_the_tool_converts_and_keeps_what_is_there(tool, official, tmp_path, capsys):
    main = tool.main
    source = save_official(official, tmp_path / "in.pth")
    out = tmp_path / "out.pth"
    assert main([str(source), str(out), "--num-classes", "80"]) == 0
    text = capsys.readouterr().out
    assert "layout official: 584 tensors used, 6 not needed" in text
    assert "stored twice: transformer.decoder.bbox_embed.layers.0.weight" in text
    assert "91 rows (raw COCO ids) converted to Detectron2's 80 classes" in text
    assert len(read_checkpoint(out)["model"][CLASS_HEAD]) == 80

    assert main([str(source), str(out)]) == 1
    assert "already exists; --force replaces it" in capsys.readouterr().err
    assert main([str(source), str(out), "--force"]) == 0
    assert len(read_checkpoint(out)["model"][CLASS_HEAD]) == 91
    back = tmp_path / "back.pth"
    assert main([str(out), str(back), "--to", "official"]) == 0
    again = read_checkpoint(back)["model"]
    assert again.keys() == official.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in official.items())
    assert main([str(source), str(tmp_path / "no" / "out.pth")]) == 1
    assert "no folder" in capsys.readouterr().err


def test_an_interrupted_conversion_leaves_nothing(tool, official, tmp_path, monkeypatch):
    source = save_official(official, tmp_path / "in.pth")
    folder = tmp_path / "out"
    folder.mkdir()
    kept = folder / "kept.pth"
    kept.write_bytes(b"what was there")

    def interrupted(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("dab_detr.checkpoint.writing.torch.save", interrupted)
    for target in (folder / "new.pth", kept):
        assert tool.main([str(source), str(target), "--force"]) == 130
    assert [path.name for path in folder.iterdir()] == ["kept.pth"]
    assert kept.read_bytes() == b"what was there"


def test_an_interrupted_replacement_of_a_directory_keeps_the_old_one(
    official, tmp_path, monkeypatch
):
    from dab_detr.checkpoint.writing import write_hf

    own = to_dab_detr(official).state
    write_hf(own, tmp_path / "hf")
    before = (tmp_path / "hf" / "model.safetensors").read_bytes()
    original = Path.rename

    def interrupted(path, target):
        if Path(target) == tmp_path / "hf" and "-old-" not in str(path):
            raise KeyboardInterrupt
        return original(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_hf(own, tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
