"""A copy of a model that predicts the same, faster, and no longer learns."""

import copy

import torch

from dab_detr.compiling import require_compiler
from dab_detr.modeling.folding import fold_norms
from dab_detr.modeling.meta_arch import DABDETR


def inference_copy(model: DABDETR, *, compile: bool = False, cuda_graphs: bool = False) -> DABDETR:
    """Copy a model for prediction; the model itself stays as it is and can go on learning.

    Batch norms of Detectron2's convolutions are folded into them, and weights are laid out with
    channels last. Results differ from the model's by rounding only.

    Args:
        model: on any device.
        compile: also compile the backbone and the transformer with the weights as constants. The
            first call, which has to be under :func:`torch.no_grad`, then takes minutes on a CPU,
            and so do the second size of images, the first batch of several, and the first with
            padding (or without); after these all batches are taken.
        cuda_graphs: with ``compile``, on a GPU: record each size's kernels and replay them, which
            pays for small batches of few sizes.

    Returns:
        A model in evaluation mode, to be called as the original.

    Raises:
        ValueError: if CUDA graphs are wanted without compiling, or not on a GPU.
        InputError: if a CPU's model is to be compiled and there is no C++ compiler.
    """
    if cuda_graphs and not (compile and model.device.type == "cuda"):
        raise ValueError("inference_copy: cuda_graphs=True needs compile=True and a GPU.")
    if compile:
        require_compiler(model.device, "inference_copy: compile=True")
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(copied)
    copied.to(memory_format=torch.channels_last)
    if compile:
        options = {"freezing": True, "triton.cudagraphs": cuda_graphs}
        for part in (copied.backbone, copied.transformer):
            part.compile(options=options)
    return copied
