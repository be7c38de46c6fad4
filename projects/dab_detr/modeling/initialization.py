"""Start values: drawn in one order when the whole model is put together.

A config builds the parts of the model before the model, which alone knows how many channels its
backbone has. For weights to follow from the seed in the order in which data goes through the model,
a part takes no numbers from PyTorch's generator when it is built, and all are drawn at the end.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def drawn_later() -> Iterator[None]:
    """What is drawn inside leaves the CPU's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        yield


def reset_parameters(module: nn.Module) -> None:
    """Draw a module's weights: by its own ``reset_parameters``, or part by part."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    else:
        for child in module.children():
            reset_parameters(child)


@torch.no_grad()
def xavier_uniform_(modules: Iterable[nn.Module]) -> None:
    """Draw the matrices of all linear layers anew, uniformly within Xavier's bound.

    A layer that is a third of a packed projection, as in :class:`torch.nn.MultiheadAttention`, has
    the bound of the whole: its attribute ``packed_with`` says how many layers that is.
    """
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                outputs, inputs = layer.weight.shape
                outputs *= getattr(layer, "packed_with", 1)
                bound = math.sqrt(3.0) * math.sqrt(2.0 / (inputs + outputs))
                nn.init.uniform_(layer.weight, -bound, bound)
