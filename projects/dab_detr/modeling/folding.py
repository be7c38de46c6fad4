"""Batch norms that only scale and shift, merged into the convolution before them."""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_norms(module: nn.Module) -> None:
    """Merge batch norms into the weights of Detectron2's convolutions before them, for good.

    For inference: the state dict has biases instead of norms.
    """
    for child in module.modules():
        if not isinstance(child, Conv2d):
            continue
        norm = child.norm
        # without statistics of its own a norm takes the batch's
        is_fixed = isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d)
        if is_fixed and norm.running_mean is not None:
            child.weight, child.bias = fuse_conv_bn_weights(
                child.weight,
                child.bias,
                norm.running_mean,
                norm.running_var,
                norm.eps,
                norm.weight,
                norm.bias,
            )
            child.norm = None
