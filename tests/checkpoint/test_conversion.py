"""Checkpoints of other layouts, at full size by the real names and shapes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from four_stages import own_model
from published import CONFIGS, model_of, random_checkpoint, save_official

from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.classes import COCO_NAMES, COCO_ROWS, RAW_COCO_NAMES, fit_classes
from dab_detr.checkpoint.conversion import from_dab_detr, to_dab_detr
from dab_detr.config import get_config
from dab_detr.errors import InputError

REFERENCE = Path(__file__).parents[1] / "assets" / "reference"
CLASS_HEAD = "transformer.decoder.class_head.weight"


@pytest.mark.parametrize("case", CONFIGS)
def test_a_full_size_checkpoint_loads_completely(case, tmp_path):
    state = random_checkpoint(case)
    path = save_official(state, tmp_path / "checkpoint.pth")
    model = model_of(case)
    Checkpointer(model, complete=True).load(str(path))
    loaded = model.state_dict()

    conversion = to_dab_detr(state)
    # every tensor of the source is used or named, every tensor of the model is filled
    assert set(conversion.used) | set(conversion.ignored) == set(state)
    assert conversion.state.keys() == loaded.keys()
    for ours, tensor in conversion.state.items():
        if "class_head" not in ours:
            assert torch.equal(loaded[ours], tensor), ours
    anchors = state["anchor_box_embed.weight" if "detrex" in case else "refpoint_embed.weight"]
    assert torch.equal(loaded["transformer.queries.center_logits"], anchors[:, :2])
    assert torch.equal(loaded["transformer.queries.size_logits"], anchors[:, 2:])
    rows = state["class_embed.weight"]
    expected = rows[list(COCO_ROWS)] if len(rows) == 91 else rows
    assert torch.equal(loaded[CLASS_HEAD], expected)


def test_the_80_rows_are_detectron2s_classes_in_order():
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    raw_ids = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]
    assert list(COCO_ROWS) == raw_ids and len(raw_ids) == 80


@pytest.mark.parametrize("case", ["official_r50_3pat", "official_r101"])
def test_writing_the_published_layout_back_is_bit_equal(case):
    state = random_checkpoint(case)
    back = from_dab_detr(to_dab_detr(state).state, "official")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_per_layer_box_heads_and_points_go_there_and_back():
    for name in ("per_layer_heads", "point_queries", "no_modulation", "patterns"):
        with np.load(REFERENCE / f"{name}.npz") as file:
            state = {
                key.removeprefix("state/"): torch.from_numpy(file[key])
                for key in file.files
                if key.startswith("state/")
            }
        back = from_dab_detr(to_dab_detr(state).state, "official")
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_classes_91_to_80_and_back():
    state = to_dab_detr(random_checkpoint("official_r50")).state
    before = state[CLASS_HEAD].clone()
    assert "80 classes" in fit_classes(state, 80, present=RAW_COCO_NAMES)
    eighty = state[CLASS_HEAD].clone()
    assert torch.equal(eighty, before[list(COCO_ROWS)])
    fit_classes(state, 91, present=COCO_NAMES)
    rest = [row for row in range(91) if row not in COCO_ROWS]
    assert torch.equal(state[CLASS_HEAD][list(COCO_ROWS)], eighty)
    assert (state["transformer.decoder.class_head.bias"][rest] == -20).all()
    fit_classes(state, 80, present=RAW_COCO_NAMES)
    assert torch.equal(state[CLASS_HEAD], eighty)
    assert "re-initialised" in fit_classes(state, 7, present=COCO_NAMES)
    assert len(state[CLASS_HEAD]) == 7


def test_another_number_of_classes_starts_a_new_head_for_training_only(tmp_path, caplog):
    path = save_official(random_checkpoint("official_r50"), tmp_path / "checkpoint.pth")
    model = model_of("official_r50", num_classes=7)
    with pytest.raises(InputError, match="91 classes, the model 7"):
        Checkpointer(model, complete=True).load(str(path))
    with caplog.at_level("WARNING", logger="dab_detr"):
        Checkpointer(model, complete=False).load(str(path))
    assert "class head: re-initialised, 91 classes in the file, 7 in the model" in caplog.text


BROKEN = {
    "a tensor is missing": (
        lambda s: s.pop("transformer.decoder.ref_anchor_head.layers.1.bias"),
        r"lacks transformer\.queries\.reference_size\.layers\.1\.bias",
    ),
    "a block is missing": (
        lambda s: [s.pop(k) for k in list(s) if k.startswith("transformer.encoder.layers.3.")],
        r"lacks transformer\.encoder\.layers\.3\.\S+ .*and \d+ more",
    ),
    "a backbone block is missing": (
        lambda s: [s.pop(k) for k in list(s) if k.startswith("backbone.0.body.layer3.5.")],
        r"ResNet has \(3, 4, 5, 3\) blocks",
    ),
    "a backbone tensor is missing": (
        lambda s: s.pop("backbone.0.body.layer2.1.bn2.running_var"),
        r"lacks backbone\.res3\.1\.conv2\.norm\.running_var",
    ),
    "a shape is wrong": (
        lambda s: s.update({"transformer.decoder.norm.weight": torch.ones(255)}),
        r"transformer\.decoder\.norm\.weight is \(255,\).*\(256,\) is expected",
    ),
    "a tensor is unknown": (
        lambda s: s.update({"transformer.level_embed": torch.ones(4, 256)}),
        r"does not have transformer\.level_embed",
    ),
    "the copies differ": (
        lambda s: s["bbox_embed.layers.0.bias"].add_(1),
        "differ",
    ),
    "nothing is known": (
        lambda s: [s.pop(k) for k in list(s) if not k.startswith("transformer.encoder")],
        "No known layout",
    ),
}


@pytest.fixture(scope="module")
def official():
    return random_checkpoint("official_r50")


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_named(official, case):
    change, words = BROKEN[case]
    state = {name: tensor.clone() for name, tensor in official.items()}
    change(state)
    with pytest.raises(InputError, match=words):
        to_dab_detr(state)


def test_detectron2s_pickled_backbone_loads(tmp_path):
    """As in Detectron2's model zoo: numpy arrays, names without a prefix."""
    model = model_of("official_r50")
    arrays = {
        name.removeprefix("backbone."): np.random.rand(*tensor.shape).astype(np.float32)
        for name, tensor in model.state_dict().items()
        if name.startswith("backbone.")
    }
    path = tmp_path / "R-50.pkl"
    path.write_bytes(
        pickle.dumps({"model": arrays, "__author__": "torchvision", "matching_heuristics": True})
    )
    Checkpointer(model, complete=False).load(str(path))
    for name, array in arrays.items():
        assert np.array_equal(model.state_dict()[f"backbone.{name}"].numpy(), array), name


def small_files(tmp_path):
    """A file that has nothing to do with the model, and one without batch norm statistics."""
    state = model_of("official_r50").state_dict()
    foreign, lacking = tmp_path / "foreign.pth", tmp_path / "lacking.pth"
    torch.save({"model": {"foo.weight": torch.ones(3)}}, foreign)
    torch.save({"model": {k: v for k, v in state.items() if "running_" not in k}}, lacking)
    return foreign, lacking


@pytest.mark.parametrize("complete", [True, False])
def test_a_file_that_fills_nothing_or_too_little_is_refused(tmp_path, complete):
    foreign, lacking = small_files(tmp_path)
    model = model_of("official_r50")
    with pytest.raises(InputError, match="has no tensor of the model.*foo.weight"):
        Checkpointer(model, complete=complete).load(str(foreign))
    with pytest.raises(InputError, match=r"lacks backbone\.\S+running_"):
        Checkpointer(model, complete=complete).load(str(lacking))


@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_backbone_weights_reach_a_feature_pyramid_and_must_be_of_its_depth(tmp_path, kind):
    cfg = get_config("backbones/r50_fpn_p4.py")
    model = instantiate(cfg.model)
    expected = {k: torch.rand_like(v) for k, v in model.backbone.bottom_up.state_dict().items()}
    last = {k: v for k, v in expected.items() if k.startswith("res4.5.")}
    deeper = {k.replace("res4.5.", f"res4.{i}."): v for i in range(6, 23) for k, v in last.items()}
    weights = {50: expected, 101: {**expected, **deeper}}
    for depth, state in weights.items():
        named = from_torchvision_names(state) if kind == "torchvision" else state
        weights[depth] = tmp_path / f"resnet{depth}.pth"
        torch.save(named, weights[depth])
    Checkpointer(model, complete=False).load(str(weights[50]))
    loaded = model.backbone.bottom_up.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    with pytest.raises(InputError, match=r"which does not have \S*res4\.\d"):
        Checkpointer(model, complete=False).load(str(weights[101]))


def from_torchvision_names(state):
    from dab_detr.checkpoint.layout import translate
    from dab_detr.checkpoint.pretrained import TORCHVISION

    return {
        translate(f"backbone.{k}", TORCHVISION.rows, backward=True): v for k, v in state.items()
    }


def test_a_pretrained_resnet_without_a_stage_is_refused(tmp_path):
    model = model_of("official_r50")
    state = {k: v for k, v in model.backbone.state_dict().items() if not k.startswith("res5")}
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(InputError, match=r"lacks backbone\.res5"):
        Checkpointer(model, complete=False).load(str(tmp_path / "cut.pth"))


def test_timm_names_of_transformers_backbones_are_read(official):
    """transformers wraps timm's ResNet with or without a further prefix."""
    native = from_dab_detr(to_dab_detr(official).state, "hf")
    own = to_dab_detr(native).state
    for prefix in (
        "model.backbone.conv_encoder.model.",
        "model.backbone.conv_encoder.model._backbone.",
    ):
        renamed = {k: v for k, v in native.items() if "conv_encoder" not in k}
        for name, tensor in official.items():
            if name.startswith("backbone.0.body."):
                renamed[prefix + name.removeprefix("backbone.0.body.")] = tensor
        again = to_dab_detr(renamed).state
        assert again.keys() == own.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in own.items())


def test_every_kind_of_file_evaluates(official, tmp_path):
    from dab_detr.checkpoint.writing import write_hf, write_state

    own = to_dab_detr(official).state
    fit_classes(own, 80, present=RAW_COCO_NAMES)
    write_state(own, tmp_path / "own.safetensors")
    write_hf(own, tmp_path / "hf")
    save_official(official, tmp_path / "official.pth")
    for name in ("own.safetensors", "hf", "official.pth"):
        model = model_of("official_r50")
        Checkpointer(model, complete=True).load(str(tmp_path / name))
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, own[key]), (name, key)


def test_what_one_decoder_layer_does_not_use_is_left_out(tmp_path):
    """The published code has the content's scale for one layer, too, which never uses it."""
    state = from_dab_detr(own_model(num_decoder_layers=1).state_dict(), "official")
    unused = {
        f"transformer.decoder.query_scale.layers.{i}.{part}": torch.rand(shape)
        for i in range(2)
        for part, shape in (("weight", (32, 32)), ("bias", (32,)))
    }
    conversion = to_dab_detr(state | unused)
    assert {name: conversion.ignored[name] for name in unused} == dict.fromkeys(
        unused, "one layer does not use it"
    )
    torch.save({"model": state | unused}, tmp_path / "one.pth")
    Checkpointer(own_model(num_decoder_layers=1), complete=True).load(str(tmp_path / "one.pth"))
