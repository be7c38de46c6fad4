"""The DC5 variant of a ResNet: its last stage has dilation instead of stride."""

from typing import Any

from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from torch import nn


def make_dc5_stages(depth: int, **kwargs: Any) -> list[list[nn.Module]]:
    """Stages res2 .. res5 as torchvision's ``replace_stride_with_dilation=[False, False, True]``.

    In the last stage the 3x3 convolution of the first block has dilation 1, the others have 2.
    Detectron2's ``res5_dilation=2`` dilates all of them; it accepts the same weights but computes
    other features.

    Args:
        depth: 50, 101 or 152.
        **kwargs: arguments of all blocks, e.g. ``norm`` and ``stride_in_1x1``.
    """
    *stages, last = ResNet.make_default_stages(depth, **kwargs)
    dilated = ResNet.make_stage(
        BottleneckBlock,
        len(last),
        in_channels=last[0].in_channels,
        out_channels=last[0].out_channels,
        bottleneck_channels=last[0].conv1.out_channels,
        stride_per_block=[1] * len(last),
        dilation_per_block=[1] + [2] * (len(last) - 1),
        **kwargs,
    )
    return [*stages, dilated]
