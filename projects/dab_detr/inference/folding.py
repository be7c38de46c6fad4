"""Batch norms that only scale and shift, merged into the convolution before them."""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized


def fold_norms(module: nn.Module) -> None:
    """Merge batch norms into the weights of Detectron2's convolutions before them, for good.

    For inference: the state dict has biases instead of norms. A convolution that does something
    else with its norm, or makes its weights from others, stays as it is.
    """
    for child in module.modules():
        is_usual = isinstance(child, Conv2d) and type(child).forward is Conv2d.forward
        if not is_usual or is_parametrized(child):
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
