"""mmdetection's names, written down from how its modules nest."""

import pytest
import torch
from four_stages import CLASSES, QUERIES, WIDTHS, own_model

from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.conversion import to_dab_detr

D, FFN = 32, 64


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, width=D):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def feed_forward(name):
    return {
        **linear(f"{name}.layers.0.0", D, FFN),
        f"{name}.layers.0.1.weight": (1,),
        **linear(f"{name}.layers.1", FFN, D),
    }


def mlp(name, *widths):
    layers = [linear(f"{name}.layers.{i}", *pair) for i, pair in enumerate(zip(widths, widths[1:]))]
    return {key: shape for layer in layers for key, shape in layer.items()}


def batch_norm(name, width):
    statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return norm(name, width) | statistics | {f"{name}.num_batches_tracked": ()}


def resnet():
    shapes = {"backbone.conv1.weight": (16, 3, 7, 7), **batch_norm("backbone.bn1", 16)}
    inputs = 16
    for stage, (width, depth) in enumerate(zip(WIDTHS, [1, 2, 1, 1]), 1):
        for block in range(depth):
            name, middle = f"backbone.layer{stage}.{block}", width // 4
            for conv, shape in (
                (1, (middle, inputs, 1, 1)),
                (2, (middle, middle, 3, 3)),
                (3, (width, middle, 1, 1)),
            ):
                shapes[f"{name}.conv{conv}.weight"] = shape
                shapes |= batch_norm(f"{name}.bn{conv}", shape[0])
            if inputs != width:
                shapes[f"{name}.downsample.0.weight"] = (width, inputs, 1, 1)
                shapes |= batch_norm(f"{name}.downsample.1", width)
            inputs = width
    return shapes


def mmdetection_shapes():
    shapes = {"query_embedding.weight": (QUERIES, 4), **resnet()}
    shapes |= {"neck.convs.0.conv.weight": (D, WIDTHS[-1], 1, 1), "neck.convs.0.conv.bias": (D,)}
    shapes |= mlp("encoder.query_scale", D, D, D)
    for i in range(2):
        layer = f"encoder.layers.{i}"
        shapes[f"{layer}.self_attn.attn.in_proj_weight"] = (3 * D, D)
        shapes[f"{layer}.self_attn.attn.in_proj_bias"] = (3 * D,)
        shapes |= linear(f"{layer}.self_attn.attn.out_proj", D, D) | feed_forward(f"{layer}.ffn")
        shapes |= norm(f"{layer}.norms.0") | norm(f"{layer}.norms.1")
    for i in range(3):
        layer = f"decoder.layers.{i}"
        for part in ("qcontent", "qpos", "kcontent", "kpos", "v", "out"):
            shapes |= linear(f"{layer}.self_attn.{part}_proj", D, D)
            if part != "qpos" or i == 0:
                shapes |= linear(f"{layer}.cross_attn.{part}_proj", D, D)
        shapes |= linear(f"{layer}.cross_attn.qpos_sine_proj", D, D) | feed_forward(f"{layer}.ffn")
        for j in range(3):
            shapes |= norm(f"{layer}.norms.{j}")
    shapes |= norm("decoder.post_norm") | mlp("decoder.query_scale", D, D, D)
    shapes |= mlp("decoder.ref_point_head", 2 * D, D, D) | mlp("decoder.ref_anchor_head", D, D, 2)
    shapes |= linear("bbox_head.fc_cls", D, CLASSES) | mlp("bbox_head.fc_reg", D, D, D, 4)
    return shapes


@pytest.mark.parametrize("mmcv", [1, 2])
def test_mmdetections_tensors_find_their_places(tmp_path, mmcv):
    state = {name: torch.rand(shape) for name, shape in mmdetection_shapes().items()}
    if mmcv == 1:
        # it names the activation a second time
        for name in [n for n in state if n.endswith("ffn.layers.0.1.weight")]:
            state[name.replace("layers.0.1.", "activate.")] = state[name].clone()
    torch.save({"state_dict": state, "meta": {"epoch": 50}}, tmp_path / "mmdetection.pth")
    model = own_model()
    Checkpointer(model, complete=True).load(str(tmp_path / "mmdetection.pth"))
    loaded = model.state_dict()
    conversion = to_dab_detr(state)
    assert set(conversion.used) | set(conversion.ignored) == set(state)
    assert all("num_batches_tracked" in k or "activate" in k for k in conversion.ignored)
    decoder = "transformer.decoder."
    for theirs, ours in {
        "neck.convs.0.conv.weight": "input_proj.weight",
        "decoder.layers.1.self_attn.kpos_proj.bias": (
            decoder + "layers.1.self_attention.key_position_proj.bias"
        ),
        "decoder.layers.0.cross_attn.qpos_proj.weight": (
            decoder + "layers.0.cross_attention.query_position_proj.weight"
        ),
        "decoder.layers.2.cross_attn.kpos_proj.weight": (
            decoder + "layers.2.cross_attention.key_encoding_proj.weight"
        ),
        "decoder.layers.2.cross_attn.qpos_sine_proj.weight": (
            decoder + "layers.2.cross_attention.query_encoding_proj.weight"
        ),
        "decoder.layers.1.norms.1.weight": decoder + "layers.1.cross_attention_norm.weight",
        "decoder.layers.1.norms.2.weight": decoder + "layers.1.feed_forward_norm.weight",
        "decoder.ref_anchor_head.layers.1.bias": "transformer.queries.reference_size.layers.1.bias",
        "bbox_head.fc_reg.layers.2.weight": decoder + "box_heads.0.layers.2.weight",
        "encoder.layers.1.ffn.layers.0.1.weight": (
            "transformer.encoder.layers.1.feed_forward.activation.weight"
        ),
        "encoder.layers.1.norms.1.bias": "transformer.encoder.layers.1.feed_forward_norm.bias",
        "backbone.layer2.1.bn3.weight": "backbone.res3.1.conv3.norm.weight",
    }.items():
        assert torch.equal(loaded[ours], state[theirs]), theirs
    # it has no raw COCO ids
    state |= {name: torch.rand(shape) for name, shape in linear("bbox_head.fc_cls", D, 91).items()}
    assert to_dab_detr(state).class_names is None
    packed = state["encoder.layers.1.self_attn.attn.in_proj_weight"].chunk(3)
    for part, expected in zip(("query", "key", "value"), packed):
        name = f"transformer.encoder.layers.1.self_attention.{part}_proj.weight"
        assert torch.equal(loaded[name], expected)
    anchors = state["query_embedding.weight"]
    assert torch.equal(loaded["transformer.queries.size_logits"], anchors[:, 2:])
