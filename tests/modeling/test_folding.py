"""Folded batch norms: the same features, gradients and names."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from torch import nn

from dab_detr.modeling.folding import fold_frozen_norms, fold_norms


def resnet(norm):
    """With statistics, scales and shifts that are not 0 and 1, and a frozen stem."""
    stages = [
        ResNet.make_stage(
            BottleneckBlock,
            2,
            in_channels=16,
            out_channels=32,
            bottleneck_channels=8,
            stride_per_block=[2, 1],
            norm=norm,
        )
    ]
    backbone = ResNet(BasicStem(3, 16, norm=norm), stages, out_features=["res2"], freeze_at=1)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return backbone


def test_training_with_folded_norms_is_the_same():
    plain = resnet("FrozenBN").train()
    folded = copy.deepcopy(plain)
    fold_frozen_norms(folded)
    images = torch.randn(2, 3, 64, 64)
    direction = torch.randn(2, 32, 8, 8)
    for backbone in (plain, folded):
        (backbone(images)["res2"] * direction).sum().backward()
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-5)
    expected = dict(plain.named_parameters())
    assert expected.keys() == dict(folded.named_parameters()).keys()
    for name, parameter in folded.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4)
    state = folded.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert not any(isinstance(m, Conv2d) and type(m) is Conv2d for m in folded.modules())


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_inference_without_norms_is_the_same(norm):
    plain = resnet(norm).eval()
    images = torch.randn(2, 3, 64, 64)
    merged = copy.deepcopy(plain)
    fold_norms(merged)
    after_training = copy.deepcopy(plain)
    fold_frozen_norms(after_training)
    fold_norms(after_training)
    for folded in (merged, after_training):
        assert not any(isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d) for m in folded.modules())
        torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-5)


def test_a_bias_before_the_norm_counts():
    norm = FrozenBatchNorm2d(4)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.running_mean)
    plain = nn.Sequential(Conv2d(3, 4, 3, padding=1, norm=norm, activation=torch.relu))
    images = torch.randn(1, 3, 8, 8)
    for fold in (fold_frozen_norms, fold_norms):
        folded = copy.deepcopy(plain)
        fold(folded)
        torch.testing.assert_close(folded(images), plain(images), rtol=1e-5, atol=1e-6)
