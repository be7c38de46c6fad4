"""A second witness: transformers' DAB-DETR, with the same random weights through the converter."""

from functools import partial

import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet

from dab_detr import inference_copy
from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.conversion import from_dab_detr, to_dab_detr
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.writing import write_hf
from dab_detr.errors import InputError
from dab_detr.modeling import DABDETR

transformers = pytest.importorskip("transformers")

WIDTHS, CLASSES, QUERIES = [16, 32, 48, 64], 7, 12


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


def own_model(num_patterns=0):
    stages, in_channels = [], 16
    for stage, (width, depth) in enumerate(zip(WIDTHS, [1, 2, 1, 1])):
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                depth,
                in_channels=in_channels,
                out_channels=width,
                bottleneck_channels=width // 4,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (depth - 1),
                norm="FrozenBN",
                stride_in_1x1=False,
            )
        )
        in_channels = width
    return DABDETR(
        backbone=ResNet(BasicStem(3, 16, norm="FrozenBN"), stages, out_features=["res5"]),
        in_features=["res5"],
        num_classes=CLASSES,
        d_model=32,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=3,
        ffn_dim=64,
        num_queries=QUERIES,
        num_patterns=num_patterns,
    ).eval()


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
    features = ours.backbone(pixels)["res5"]
    padded = torch.nn.functional.interpolate(valid[:, None].float(), size=features.shape[-2:])
    logits, boxes = ours.transformer(features, padded[:, 0] == 0, all_layers=False)
    return (output.logits, output.pred_boxes), (logits[-1], boxes[-1].sigmoid())


MODES = {
    "as trained": lambda model: model,
    "inference_copy": inference_copy,
    "inference_copy, compiled": partial(inference_copy, compile=True),
}


@pytest.mark.parametrize(
    "num_patterns, mode", [*((0, mode) for mode in MODES), (2, "as trained"), (2, "inference_copy")]
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


def test_what_we_write_transformers_loads_and_computes_the_same(tmp_path):
    ours = own_model()
    with torch.no_grad():
        for box_head in ours.transformer.decoder.box_heads:
            box_head.layers[-1].weight.normal_(std=0.1)
    write_hf(ours.state_dict(), tmp_path / "hf", num_heads=4)
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
