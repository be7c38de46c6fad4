"""Weight initialisation: all weights are drawn in one order when the model is complete.

A config builds the parts of the model first; only the model knows the number of channels of its
backbone. So that the weights depend only on the seed and the order of the data flow, building a
part does not advance PyTorch's random generator, and all weights are drawn at the end.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def defer_initialization() -> Iterator[None]:
    """Within this context, drawing numbers does not advance the CPU's random generator."""
    with torch.random.fork_rng(devices=[]):
        yield


def reset_parameters(module: nn.Module) -> None:
    """Initialise a module by its own ``reset_parameters``, or else its children."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    else:
        for child in module.children():
            reset_parameters(child)


@torch.no_grad()
def xavier_uniform_(modules: Iterable[nn.Module]) -> None:
    """Initialise the weights of all linear layers by Xavier's uniform rule.

    A layer that is a third of a packed projection, as in :class:`torch.nn.MultiheadAttention`, has
    the bound of the packed matrix: the layer's attribute ``packed_with`` is the number of layers
    in it.
    """
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                outputs, inputs = layer.weight.shape
                outputs *= getattr(layer, "packed_with", 1)
                bound = math.sqrt(3.0) * math.sqrt(2.0 / (inputs + outputs))
                nn.init.uniform_(layer.weight, -bound, bound)
