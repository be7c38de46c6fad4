"""Fuses convolutions with the BatchNorm that follows them."""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized


def fuse_conv_bn(module: nn.Module) -> None:
    """Fuse Detectron2's convolutions with their BatchNorm, in place.

    For inference only: the state dict then has biases instead of norms. Subclasses of the
    convolution and parametrized convolutions are not changed.
    """
    for child in module.modules():
        is_usual = isinstance(child, Conv2d) and type(child).forward is Conv2d.forward
        if not is_usual or is_parametrized(child):
            continue
        norm = child.norm
        # a norm without running statistics uses those of the batch
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
