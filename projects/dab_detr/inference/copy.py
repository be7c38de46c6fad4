"""A faster copy of a model, for inference only."""

import copy

import torch

from dab_detr.compiling import compile_for_all_sizes, require_compiler
from dab_detr.inference.fusing import fuse_conv_bn
from dab_detr.modeling.meta_arch import DABDETR


def inference_copy(model: DABDETR, *, compile: bool = False, cuda_graphs: bool = False) -> DABDETR:
    """Copy a model for inference; the model itself is not changed and can be trained further.

    Detectron2's convolutions are fused with their BatchNorm, and weights use channels last. Results
    differ from the model's only by rounding. Save the model, not the copy: without norms the
    copy's state dict fits no other model.

    Args:
        model: on any device.
        compile: also compile the backbone and the transformer with constant weights, for all sizes
            of images. The first call then takes a minute or more, and so do the first batch of
            several images, the first with padding, and on a CPU the first of 16 or more. It has to
            be called under :func:`torch.no_grad`.
        cuda_graphs: with ``compile``, on a GPU: record the kernels for each size and replay them,
            which helps for small batches of few sizes.

    Returns:
        A model in evaluation mode, to be called like the original.

    Raises:
        TypeError: for another model, such as one wrapped in DistributedDataParallel.
        ValueError: for CUDA graphs without ``compile``, or without a GPU.
        InputError: if ``compile`` is set and there is no compiler.
    """
    if not isinstance(model, DABDETR):
        raise TypeError(
            f"inference_copy takes a DABDETR, not {type(model).__name__}: "
            "give it the .module of a wrapped model."
        )
    if cuda_graphs and not (compile and model.device.type == "cuda"):
        raise ValueError("inference_copy: cuda_graphs=True needs compile=True and a GPU.")
    if compile:
        require_compiler(model.device, "inference_copy: compile=True")
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    fuse_conv_bn(copied)
    copied.to(memory_format=torch.channels_last)
    if compile:
        options = {"freezing": True, "triton.cudagraphs": cuda_graphs}
        for part in (copied.backbone, copied.input_proj, copied.transformer):
            compile_for_all_sizes(part, options=options)
        copied.register_forward_pre_hook(_refuse_gradients)
    return copied


def _refuse_gradients(model: DABDETR, inputs: tuple) -> None:
    """With gradients, PyTorch would compile another graph without constant weights."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "A compiled inference_copy has to be called under torch.no_grad() or "
            "torch.inference_mode()."
        )
