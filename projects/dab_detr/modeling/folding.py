"""Batch norms that only scale and shift, taken into the convolution before them."""

import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class FoldedConv2d(Conv2d):
    """Detectron2's convolution with a frozen batch norm, in one operation instead of three.

    The norm's scale goes into the weights at each call, so that the convolution still learns and
    the state dict stays the same, and the feature map is written once instead of three times.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to features, as the convolution that this was made from."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        weight = self.weight * scale[:, None, None, None]
        x = F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(module: nn.Module) -> None:
    """Let Detectron2's convolutions with a frozen batch norm compute both in one.

    For training: weights, gradients and names in the state dict stay what they were.
    """
    for name, child in module.named_children():
        if _has_norm(child, FrozenBatchNorm2d):
            folded = _like(child, FoldedConv2d, norm=child.norm)
            folded.weight, folded.bias = child.weight, child.bias
            setattr(module, name, folded)
        else:
            fold_frozen_norms(child)


def fold_norms(module: nn.Module) -> None:
    """Merge batch norms into the weights of Detectron2's convolutions before them, for good.

    For inference: the state dict has biases instead of norms.
    """
    for name, child in module.named_children():
        if _has_norm(child, FrozenBatchNorm2d, nn.BatchNorm2d):
            norm = child.norm
            folded = _like(child, Conv2d, norm=None)
            folded.weight, folded.bias = fuse_conv_bn_weights(
                child.weight,
                child.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            setattr(module, name, folded)
        else:
            fold_norms(child)


def _has_norm(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    return isinstance(module, Conv2d) and isinstance(module.norm, kinds)


def _like(conv: Conv2d, kind: type[Conv2d], norm: nn.Module | None) -> Conv2d:
    """A convolution of another class, but for its weights."""
    made = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        device="meta",
        norm=norm,
        activation=conv.activation,
    )
    return made.train(conv.training)
