"""ResNets with torchvision's weights, and every other kind of backbone by its config."""

import pytest
import torch
import torchvision
from detectron2.config import instantiate

from dab_detr.checkpoint import Checkpointer
from dab_detr.config import get_config, list_configs
from dab_detr.engine.unused import freeze_unused
from dab_detr.errors import InputError
from dab_detr.flat_config import model_config
from dab_detr.modeling import DABDETR

SMALL = {"d_model": 32, "num_heads": 4, "num_encoder_layers": 1, "num_decoder_layers": 1}
BACKBONES = [name for name in list_configs() if name.startswith("backbones/")]


def small_dab_detr(backbone, level):
    transformer = instantiate(model_config(num_classes=3, **SMALL).transformer)
    return DABDETR(backbone=backbone, in_features=level, num_classes=3, transformer=transformer)


def random_torchvision_resnet(depth, dc5):
    model = getattr(torchvision.models, f"resnet{depth}")(
        weights=None, replace_stride_with_dilation=[False, False, dc5]
    ).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(std=0.1)
    return model


@pytest.mark.parametrize("depth, dc5", [(50, False), (50, True), (101, False), (101, True)])
@torch.no_grad()
def test_resnets_give_torchvisions_features(tmp_path, depth, dc5):
    theirs = random_torchvision_resnet(depth, dc5)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    variant = "_dc5" if dc5 else ""
    ours = instantiate(get_config(f"dab_detr_r{depth}{variant}_50ep.py").model).eval()
    Checkpointer(ours, complete=False).load(str(tmp_path / "resnet.pth"))
    image = torch.randn(1, 3, 96, 128)
    features = torch.nn.Sequential(*list(theirs.children())[:-2])(image)
    actual = ours.backbone(image)["res5"]
    assert actual.shape[-2:] == ((6, 8) if dc5 else (3, 4))
    error = (actual - features).abs().max() / features.abs().max()
    assert error <= 1e-4
    assert ours.backbone.output_shape()["res5"].stride == (16 if dc5 else 32)


@pytest.mark.parametrize("depth, total", [(50, 43_671_517), (101, 62_611_421)])
@pytest.mark.parametrize("dc5", ["", "_dc5"])
@pytest.mark.parametrize("patterns", [0, 3])
def test_parameter_counts_are_the_published_ones(depth, total, dc5, patterns):
    name = f"dab_detr_r{depth}{dc5}{'_3pat' if patterns else ''}_50ep.py"
    # with the published head of 91 rows
    model = instantiate(get_config(name, ["model.num_classes=91"]).model)
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == total + patterns * 256
    assert sum(p.numel() for p in parameters if not p.requires_grad) == 222_400


@pytest.mark.parametrize("name", BACKBONES)
def test_other_backbones_train_and_predict(name, batch):
    if any(kind in name for kind in ("timm", "vit")):
        pytest.importorskip("timm")
    small = [
        "model.transformer.encoder.num_layers=1",
        "model.transformer.decoder.num_layers=2",
        "model.transformer.queries.num_queries=8",
    ]
    model = instantiate(get_config(name, small).model)
    # as they are trained
    model.to(memory_format=torch.channels_last)
    inputs = batch(((96, 96), (64, 90)))
    freeze_unused(model)
    losses = model(inputs)
    assert sum(losses.values()).isfinite()
    sum(losses.values()).backward()
    # several processes wait for the gradient of every parameter that is not frozen
    waited_for = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in waited_for.items() if gradient is None]
    # what only feeds other levels gets none; of the level's own way most parameters do
    trained = [p.grad is not None and bool(p.grad.any()) for p in model.backbone.parameters()]
    assert sum(trained) > 0.5 * len(trained)
    with torch.no_grad():
        found = model.eval()(inputs)
    assert [x["instances"].image_size for x in found] == [(96, 96), (64, 90)]


def test_an_unknown_timm_model_is_named():
    pytest.importorskip("timm")
    from dab_detr.modeling.backbone.timm import TimmBackbone

    with pytest.raises(ValueError, match="'resnet51'.*resnet"):
        TimmBackbone("resnet51")
    backbone = TimmBackbone("resnet18", out_indices=(2, 3))
    assert {k: (v.channels, v.stride) for k, v in backbone.output_shape().items()} == {
        "p3": (128, 8),
        "p4": (256, 16),
    }


def timm_backbone(name, **arguments):
    pytest.importorskip("timm")
    from dab_detr.modeling.backbone.timm import TimmBackbone

    return TimmBackbone(name, **arguments)


@pytest.mark.parametrize("indices", [(3, 7, 11), (11, 3, 7), (-1, -5, -9)], ids=str)
def test_levels_of_one_stride_are_distinguished(indices, batch):
    backbone = timm_backbone("vit_tiny_patch16_224", out_indices=indices).eval()
    shapes = backbone.output_shape()
    assert {k: (v.channels, v.stride) for k, v in shapes.items()} == {
        f"p4_{i}": (192, 16) for i in (3, 7, 11)
    }
    # what leaves each block, after the prefix token
    seen = {}
    for index in (3, 7, 11):
        backbone.body.model.blocks[index].register_forward_hook(
            lambda module, inputs, output, index=index: seen.update({index: output[:, 1:]})
        )
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    for index, tokens in seen.items():
        found = features[f"p4_{index}"]
        assert found.shape == (1, 192, 4, 6)
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens)
    model = small_dab_detr(backbone, "p4_7")
    passed = []
    model.input_proj.register_forward_pre_hook(lambda module, inputs: passed.append(inputs[0]))
    with torch.no_grad():
        model.eval()(batch(((64, 96),), (0,)))
    torch.testing.assert_close(passed[0].flatten(2).transpose(1, 2), seen[7])


def test_strided_levels_come_in_the_order_of_their_names():
    for indices in ((1, 3), (3, 1), (-1, 1)):
        backbone = timm_backbone("swin_tiny_patch4_window7_224", out_indices=indices)
        with torch.no_grad():
            features = backbone(torch.randn(1, 3, 64, 96))
        assert {k: tuple(v.shape[1:]) for k, v in features.items()} == {
            "p3": (192, 8, 12),
            "p5": (768, 2, 3),
        }


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "eva02_tiny_patch14_224",
        "sam2_hiera_tiny",
        "convnext_atto",
        "resnet18",
    ],
)
def test_timms_models_take_images_of_any_size(name, batch):
    backbone = timm_backbone(name)
    ((level, shape),) = backbone.output_shape().items()
    model = small_dab_detr(backbone, level)
    seen = []
    model.input_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for sizes in (((97, 131), (64, 75)), ((75, 250), (75, 250))):
        losses = model(batch(sizes))
        assert sum(losses.values()).isfinite()
        divisor = backbone.size_divisibility or 1
        padded = [-(-max(x) // divisor) * divisor for x in zip(*sizes)]
        channels, *cells = seen.pop().shape[1:]
        assert channels == shape.channels
        for pixels, found in zip(padded, cells):
            assert found in (pixels // shape.stride, -(-pixels // shape.stride))


@pytest.mark.parametrize("name", ["mixer_s16_224", "hiera_tiny_224", "coatnet_0_rw_224"])
def test_models_of_one_size_are_refused_when_they_are_built(name):
    with pytest.raises(ValueError, match=f"'{name}' does not accept images of every size"):
        timm_backbone(name)


def test_a_size_that_timm_refuses_later_is_reported_in_a_sentence():
    backbone = timm_backbone("mvitv2_tiny")
    with pytest.raises(InputError, match="'mvitv2_tiny' does not accept images of 64 x 512 pixels"):
        backbone(torch.randn(1, 3, 64, 512))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"out_indices": (55,)}, "does not return such feature maps"),
        ({"out_indices": (11, -1)}, "name a level .* twice"),
        ({"patch": 3}, "unexpected keyword argument 'patch'"),
    ],
    ids=str,
)
def test_wrong_arguments_for_timm_are_reported_in_a_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        timm_backbone("vit_tiny_patch16_224", **arguments)


@pytest.mark.parametrize(
    "level, unused",
    [("p4", ["lateral3", "output3", "output5"]), ("p3", ["output4", "output5"]), ("res5", None)],
)
def test_only_what_feeds_other_levels_is_frozen(level, unused):
    cfg = get_config("backbones/r50_fpn_p4.py")
    cfg.model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
    cfg.model.backbone.bottom_up.stem.norm = "BN"
    cfg.model.backbone.in_features = ["res3", "res4", "res5"]
    cfg.model.in_features = [level]
    if unused is None:
        cfg.model.backbone, unused = cfg.model.backbone.bottom_up, []
    model = instantiate(cfg.model).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = {f"backbone.fpn_{name}.{part}" for name in unused for part in ("weight", "bias")}
    assert set(freeze_unused(model)) == expected
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen | expected
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(module.training for module in model.backbone.modules())
