"""Freezes parameters of a backbone that the used level does not depend on."""

import logging

import torch
from torch import Tensor, nn

from dab_detr.errors import listed

logger = logging.getLogger(__name__)
# pixels; a multiple of every backbone's stride
_SIDE = 128


def freeze_unused(model: nn.Module) -> list[str]:
    """Freeze parameters that never get a gradient, for which DistributedDataParallel would wait.

    These are layers for other levels, as in a feature pyramid. They do not change in a single
    process either.

    Args:
        model: a :class:`~dab_detr.modeling.DABDETR`; its mode and statistics are not changed.

    Returns:
        The names of the parameters.
    """
    used = _used(model)
    names = []
    for name, parameter in model.backbone.named_parameters(prefix="backbone"):
        if parameter.requires_grad and id(parameter) not in used:
            parameter.requires_grad = False
            names.append(name)
    if names:
        logger.info(f"Frozen, because {model.in_feature} does not need them: {listed(names)}.")
    return names


def _used(model: nn.Module) -> set[int]:
    """The ids of the parameters that the used level depends on."""
    image = torch.zeros(1, model.pixel_mean.numel(), _SIDE, _SIDE, device=model.device)
    modes = {module: module.training for module in model.backbone.modules()}
    # in training mode, batch norms would update statistics, and drop path would draw numbers
    model.backbone.eval()
    with torch.enable_grad():
        feature: Tensor = model.backbone(image)[model.in_feature]
    for module, mode in modes.items():
        module.training = mode
    waiting, seen, used = [feature.grad_fn], {None}, set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            # a leaf of the graph refers to its parameter
            used.add(id(getattr(node, "variable", None)))
            waiting += [following for following, _ in node.next_functions]
    return used
