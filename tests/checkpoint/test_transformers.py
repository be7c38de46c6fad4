"""A second witness: transformers' DAB-DETR, with the same random weights through the converter."""

import argparse
from functools import partial

import pytest
import torch
from detectron2.config import instantiate
from four_stages import CLASSES, QUERIES, WIDTHS, own_model

from dab_detr import inference_copy
from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.conversion import from_dab_detr, to_dab_detr
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.writing import write_hf
from dab_detr.config import get_config
from dab_detr.errors import InputError

transformers = pytest.importorskip("transformers")


def hf_model(num_patterns=0):
    config = transformers.DabDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=WIDTHS, depths=[1, 2, 1, 1], out_features=["stage4"]
        ),
        hidden_size=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=QUERIES,
        num_patterns=num_patterns,
        num_labels=CLASSES,
    )
    model = transformers.DabDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_var", "normalization.weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            else:
                tensor.normal_(std=0.1)
        # anchors well inside the image
        model.model.query_refpoint_embeddings.weight.normal_()
    return model


def inputs():
    pixels = torch.randn(2, 3, 128, 160)
    valid = torch.zeros(2, 128, 160, dtype=torch.long)
    for image, (height, width) in enumerate([(128, 160), (96, 110)]):
        valid[image, :height, :width] = 1
        pixels[image, :, height:] = 0
        pixels[image, :, :, width:] = 0
    return pixels, valid


@torch.no_grad()
def both_predict(theirs, ours):
    """(logits, boxes) of the last layer of each."""
    pixels, valid = inputs()
    output = theirs(pixel_values=pixels, pixel_mask=valid)
    logits, boxes = ours.core(pixels, valid == 0)
    return (output.logits, output.pred_boxes), (logits, boxes.sigmoid())


MODES = {
    "as trained": lambda model: model,
    "inference_copy": inference_copy,
    "inference_copy, compiled": partial(inference_copy, compile=True),
}


@pytest.mark.parametrize(
    "num_patterns, mode",
    [
        (0, "as trained"),
        (0, "inference_copy"),
        pytest.param(0, "inference_copy, compiled", marks=pytest.mark.long),
        (2, "as trained"),
        (2, "inference_copy"),
    ],
)
def test_agrees_where_anchors_are_moderate(tmp_path, num_patterns, mode):
    torch._dynamo.reset()
    theirs, ours = hf_model(num_patterns), own_model(num_patterns)
    theirs.save_pretrained(tmp_path)
    Checkpointer(ours, complete=True).load(str(tmp_path))
    ours = MODES[mode](ours)
    for expected, actual in zip(*both_predict(theirs, ours)):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_differs_at_the_border_where_its_eps_is_smaller(tmp_path):
    """transformers bounds logits with eps = 1e-5, the published code and we with 1e-3.

    An anchor at logit 9 therefore stays there in theirs and is pulled back to 6.9 in ours.
    """
    theirs, ours = hf_model(), own_model()
    with torch.no_grad():
        theirs.model.query_refpoint_embeddings.weight[0] = 9.0
    theirs.save_pretrained(tmp_path)
    Checkpointer(ours, complete=True).load(str(tmp_path))
    (_, expected), (_, actual) = both_predict(theirs, ours)
    difference = (torch.logit(expected) - torch.logit(actual)).abs().amax(-1)  # (image, query)
    assert (difference[:, 0] > 0.5).all()


@pytest.mark.parametrize("num_patterns, temperature", [(0, 20), (2, 10)])
def test_what_we_write_transformers_loads_and_computes_the_same(
    tmp_path, num_patterns, temperature
):
    ours = own_model(num_patterns)
    ours.transformer.key_encoding.temperature = temperature
    with torch.no_grad():
        for box_head in ours.transformer.decoder.box_heads:
            box_head.layers[-1].weight.normal_(std=0.1)
    write_hf(ours.state_dict(), tmp_path / "hf", num_heads=4, key_temperature=temperature)
    theirs, report = transformers.DabDetrForObjectDetection.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for expected, actual in zip(*both_predict(theirs.eval(), ours)):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    back = to_dab_detr(read_checkpoint(tmp_path / "hf")["model"]).state
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())


def test_what_transformers_has_no_place_for_is_named(tmp_path):
    state = own_model().state_dict()
    per_layer = dict(state)
    for name, tensor in state.items():
        if "box_heads.0" in name:
            per_layer[name.replace("box_heads.0", "box_heads.1")] = tensor
            per_layer[name.replace("box_heads.0", "box_heads.2")] = tensor
    with pytest.raises(InputError, match="share_box_head=True"):
        write_hf(per_layer, tmp_path / "hf")
    other = {k.replace("backbone.res5", "backbone.stage5"): v for k, v in state.items()}
    with pytest.raises(InputError, match="ResNet"):
        write_hf(other, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    names = from_dab_detr(state, "hf")
    assert "model.encoder.layers.0.self_attn.q_proj.weight" in names


def dc5_model():
    small = {"encoder.num_layers": 1, "decoder.num_layers": 2, "queries.num_queries": 12}
    overrides = [f"model.transformer.{name}={value}" for name, value in small.items()]
    model = instantiate(get_config("dab_detr_r50_dc5_50ep.py", overrides).model).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("norm.weight", "running_var")):
                tensor.uniform_(0.5, 1.0)
            elif "box_heads.0.layers.2.weight" in name:
                tensor.normal_(std=0.05)
    return model


def test_a_dilated_resnet_computes_the_same_in_transformers(tmp_path, load_tool, capsys):
    pytest.importorskip("timm")
    convert = load_tool("convert_checkpoint").main
    ours = dc5_model()
    Checkpointer(ours, str(tmp_path), complete=True).save("model_final")
    # the file says that it is dilated, and of the temperature of its keys
    assert convert([str(tmp_path / "model_final.pth"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert "key_temperature=10.0, dilation=True" in capsys.readouterr().out
    theirs, report = transformers.DabDetrForObjectDetection.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for expected, actual in zip(*both_predict(theirs.eval(), ours)):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    # another way that transformers writes the same, and back
    theirs.save_pretrained(tmp_path / "again")
    for name in ("hf", "again"):
        assert convert([str(tmp_path / name), str(tmp_path / f"{name}.pth")]) == 0
        back = read_checkpoint(tmp_path / f"{name}.pth")
        assert back["description"]["settings"]["dilation"] is True
        state = back["model"]
        assert all(torch.equal(state[key], x) for key, x in ours.state_dict().items())


def test_what_the_tensors_do_not_show_comes_from_the_file_or_is_asked_for(
    tmp_path, load_tool, capsys, caplog
):
    convert = load_tool("convert_checkpoint").main
    ours = own_model()
    official = from_dab_detr(ours.state_dict(), "official")
    file, folder = str(tmp_path / "in.pth"), str(tmp_path / "hf")
    torch.save({"model": official}, file)
    assert convert([file, folder, "--to", "hf"]) == 1
    assert "in.pth does not say whether its backbone is dilated" in capsys.readouterr().err
    assert convert([file, folder, "--to", "hf", "--no-dilation", "--num-heads", "4"]) == 0
    assert "num_heads=4, key_temperature=20.0, dilation=False" in capsys.readouterr().out

    arguments = argparse.Namespace(dilation=False, nheads=4, pe_temperatureH=10)
    torch.save({"model": official, "args": arguments}, file)
    assert convert([file, folder, "--to", "hf", "--force"]) == 0
    assert "num_heads=4, key_temperature=10, dilation=False" in capsys.readouterr().out
    # on the way through this project's layout nothing is lost
    assert convert([file, str(tmp_path / "own.safetensors")]) == 0
    assert convert([str(tmp_path / "own.safetensors"), folder, "--to", "hf", "--force"]) == 0
    assert "num_heads=4, key_temperature=10, dilation=False" in capsys.readouterr().out

    arguments.dilation = True
    torch.save({"model": official, "args": arguments}, file)
    assert convert([file, folder, "--to", "hf", "--force"]) == 1
    assert "dilation (DC5) only for timm's ResNets" in capsys.readouterr().err
    with caplog.at_level("WARNING", logger="dab_detr"):
        Checkpointer(ours, complete=True).load(file)
    assert "trained with dilation=True, but the model has False" in caplog.text
    assert "trained with key_temperature=10, but the model has 20.0" in caplog.text


@pytest.mark.parametrize("layout", ["hf", "official"])
@pytest.mark.parametrize(
    "setting, attribute, value",
    [("query_temperature", "temperature", 20), ("update_anchors", "update_anchors", False)],
)
def test_settings_that_others_do_not_have_are_refused(
    tmp_path, load_tool, capsys, layout, setting, attribute, value
):
    model = own_model()
    setattr(model.transformer.queries, attribute, value)
    Checkpointer(model, str(tmp_path), complete=True).save("model_final")
    convert = load_tool("convert_checkpoint").main
    target = tmp_path / ("hf" if layout == "hf" else "out.pth")
    assert convert([str(tmp_path / "model_final.pth"), str(target), "--to", layout]) == 1
    assert f"The layout {layout} needs {setting}=" in capsys.readouterr().err
    assert not target.exists()
