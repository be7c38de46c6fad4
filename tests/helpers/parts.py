"""Parts of the model, put together for tests of one of them."""

from torch import nn

from dab_detr.modeling import Core


class Level(nn.Module):
    """A backbone that hands on what it is given, as its one level."""

    def forward(self, pixels):
        return {"level": pixels}


def core_of(transformer):
    """A transformer as a model on tensors: the pixels are its feature map."""
    return Core(Level(), "level", nn.Identity(), transformer)
