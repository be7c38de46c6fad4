"""ResNets with torchvision's weights, and every other kind of backbone by its config."""

import pytest
import torch
import torchvision
from detectron2.config import instantiate

from dab_detr.checkpoint import Checkpointer
from dab_detr.config import get_config, list_configs

BACKBONES = [name for name in list_configs() if name.startswith("backbones/")]


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
    small = ["model.num_encoder_layers=1", "model.num_decoder_layers=2", "model.num_queries=8"]
    model = instantiate(get_config(name, small).model)
    # as they are trained
    model.to(memory_format=torch.channels_last)
    inputs = batch(((96, 96), (64, 90)))
    losses = model(inputs)
    assert sum(losses.values()).isfinite()
    sum(losses.values()).backward()
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
