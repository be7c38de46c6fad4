"""A copy of a model that predicts the same, faster, and no longer learns."""

import copy

import torch

from dab_detr.compiling import compile_for_all_sizes, require_compiler
from dab_detr.inference.folding import fold_norms
from dab_detr.modeling.meta_arch import DABDETR


def inference_copy(model: DABDETR, *, compile: bool = False, cuda_graphs: bool = False) -> DABDETR:
    """Copy a model for prediction; the model itself stays as it is and can go on learning.

    Batch norms of Detectron2's convolutions are folded into them, and weights are laid out with
    channels last. Results differ from the model's by rounding only. Save the model, not the copy:
    without norms the copy's state dict fits no other model.

    Args:
        model: on any device.
        compile: also compile the backbone and the transformer with the weights as constants, for
            all sizes of images. The first call then takes a minute or more, and so does the first
            of several images, the first with padding, and on a CPU the first of 16 or more. Calls
            have to be under :func:`torch.no_grad`.
        cuda_graphs: with ``compile``, on a GPU: record each size's kernels and replay them, which
            pays for small batches of few sizes.

    Returns:
        A model in evaluation mode, to be called as the original.

    Raises:
        TypeError: for another model, such as one that is wrapped for several GPUs.
        ValueError: if CUDA graphs are wanted without compiling, or not on a GPU.
        InputError: if the model is to be compiled and there is no compiler.
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
    fold_norms(copied)
    copied.to(memory_format=torch.channels_last)
    if compile:
        options = {"freezing": True, "triton.cudagraphs": cuda_graphs}
        for part in (copied.backbone, copied.input_proj, copied.transformer):
            compile_for_all_sizes(part, options=options)
        copied.register_forward_pre_hook(_refuse_gradients)
    return copied


def _refuse_gradients(model: DABDETR, inputs: tuple) -> None:
    """With gradients, PyTorch would quietly compile another model, whose weights can change."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "A compiled inference_copy has to be called under torch.no_grad() or "
            "torch.inference_mode()."
        )
