"""Convolutions fused with their BatchNorm: the same features."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dab_detr.inference.fusing import fuse_conv_bn


def resnet(norm):
    """With statistics, scales and shifts that are not 0 and 1."""
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
    backbone = ResNet(BasicStem(3, 16, norm=norm), stages, out_features=["res2"])
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return backbone


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_fused_convolutions_compute_the_same(norm):
    plain = resnet(norm).eval()
    images = torch.randn(2, 3, 64, 64)
    fused = copy.deepcopy(plain)
    fuse_conv_bn(fused)
    assert not any(isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-4, atol=1e-5)


def test_a_norm_without_statistics_stays():
    plain = nn.Sequential(Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4, track_running_stats=False)))
    fused = copy.deepcopy(plain).eval()
    fuse_conv_bn(fused)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fused(images), plain.eval()(images))


class NormFirst(Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(self.norm(x), self.weight)


def random_norm(channels):
    norm = FrozenBatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.running_mean)
    return norm


@pytest.mark.parametrize(
    "convolution",
    [
        lambda: NormFirst(4, 4, 3, norm=random_norm(4), bias=False),
        lambda: weight_norm(Conv2d(4, 4, 3, norm=random_norm(4), bias=False)),
    ],
    ids=["a norm before the convolution", "weights made from others"],
)
def test_an_unusual_convolution_stays(convolution):
    plain = nn.Sequential(convolution())
    images = torch.randn(1, 4, 8, 8)
    fused = copy.deepcopy(plain)
    fuse_conv_bn(fused)
    assert fused[0].norm is not None
    torch.testing.assert_close(fused(images), plain(images))


def test_a_bias_before_the_norm_counts():
    plain = nn.Sequential(Conv2d(3, 4, 3, padding=1, norm=random_norm(4), activation=torch.relu))
    images = torch.randn(1, 3, 8, 8)
    nn.init.normal_(plain[0].bias)
    fused = copy.deepcopy(plain)
    fuse_conv_bn(fused)
    torch.testing.assert_close(fused(images), plain(images), rtol=1e-5, atol=1e-6)
