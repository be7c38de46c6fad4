"""A checkpoint that version 0.1 has written: its weights are read, its training is not resumed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.config import get_config
from dab_detr.errors import InputError

ASSETS = Path(__file__).parents[1] / "assets"
FILE = ASSETS / "version_0_1.pth"


def model_of_then():
    """The model of the file, of today."""
    model = get_config(ASSETS / "bench_config.py").model
    model.backbone.stem.out_channels = 4
    for index, stage in enumerate(model.backbone.stages):
        stage.in_channels, stage.out_channels = 4 * 2**index, 8 * 2**index
        stage.bottleneck_channels = 2 * 2**index
    transformer = model.transformer
    transformer.d_model, transformer.key_temperature = 16, 10.0
    transformer.encoder.num_heads, transformer.encoder.ffn_dim = 2, 24
    transformer.queries.num_queries, transformer.queries.num_patterns = 5, 2
    model.num_classes, model.num_select = 3, 8
    return instantiate(model).eval()


def assert_detects_as_then(model):
    with np.load(ASSETS / "version_0_1.npz") as file:
        image, *expected = (torch.from_numpy(file[x]) for x in ("image", "scores", "boxes"))
        labels = file["labels"].tolist()
    with torch.no_grad():
        found = model([{"image": image}])[0]["instances"]
    torch.testing.assert_close(found.scores, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.pred_boxes.tensor, expected[1], atol=1e-3, rtol=0)
    assert found.pred_classes.tolist() == labels


def without_description(tmp_path):
    content = torch.load(FILE)
    del content["description"]
    torch.save(content, tmp_path / "plain.pth")
    return tmp_path / "plain.pth"


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("described", [True, False])
def test_it_detects_as_it_did(tmp_path, caplog, described, averaged):
    file = FILE if described else without_description(tmp_path)
    model = model_of_then()
    with caplog.at_level("WARNING", logger="dab_detr"):
        Checkpointer(model, complete=True, averaged=averaged).load(str(file))
    assert_detects_as_then(model)
    # its settings are those of the model, and its classes stay
    assert "trained with" not in caplog.text


def test_the_tool_makes_it_a_file_of_now(tmp_path, load_tool, capsys):
    convert = load_tool("convert_checkpoint").main
    new, official = tmp_path / "new.safetensors", tmp_path / "official.pth"
    assert convert([str(FILE), str(new)]) == 0
    assert "layout dab_detr 0.1" in capsys.readouterr().out
    description = read_checkpoint(new)["description"]
    assert description["version"] == 2 and description["class_names"] == ["a", "b", "c"]
    assert description["settings"]["key_temperature"] == 10
    model = model_of_then()
    Checkpointer(model, complete=True).load(str(new))
    assert_detects_as_then(model)
    # what was packed is packed again
    assert convert([str(FILE), str(official), "--to", "official"]) == 0
    then, packed = read_checkpoint(FILE)["model"], read_checkpoint(official)["model"]
    name = "transformer.encoder.layers.0.{}.weight"
    assert torch.equal(
        packed[name.format("self_attn").replace(".weight", ".in_proj_weight")],
        then[name.format("self_attention.in_proj")],
    )


def test_what_does_not_fit_is_still_refused(tmp_path):
    content = torch.load(FILE)
    del content["model"]["transformer.decoder.norm.weight"]
    torch.save(content, tmp_path / "cut.pth")
    with pytest.raises(InputError, match=r"lacks transformer\.decoder\.norm\.weight"):
        Checkpointer(model_of_then(), complete=True).load(str(tmp_path / "cut.pth"))


def test_its_training_is_not_resumed(tmp_path):
    content = torch.load(FILE)
    torch.save(content, tmp_path / "model_0000004.pth")
    checkpointer = Checkpointer(model_of_then(), str(tmp_path), complete=False)
    words = rf"started with dab_detr 0\.1.*train\.init_checkpoint={re.escape(str(tmp_path))}"
    with pytest.raises(InputError, match=words):
        checkpointer.resume()
    # the sentence's way works
    checkpointer.load(str(tmp_path / "model_0000004.pth"))
    assert_detects_as_then(checkpointer.model)


def test_train_net_says_so(in_process, tmp_path, capsys):
    config = ASSETS / "tiny_config.py"
    torch.save(torch.load(FILE), tmp_path / "model_0000004.pth")
    arguments = ["--config-file", str(config), "--resume", f"train.output_dir={tmp_path}"]
    assert in_process(*arguments) == 1
    assert "started with dab_detr 0.1" in capsys.readouterr().err
