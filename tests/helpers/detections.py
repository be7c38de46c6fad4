"""Models whose detections depend on everything, and comparisons of detections of an image."""

import torch
from torch import nn


def as_after_training(model):
    """Gives a new model heads and statistics with which its outputs depend on everything."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    nn.init.normal_(model.transformer.decoder.class_head.weight, std=0.5)
    nn.init.normal_(model.transformer.decoder.box_heads[0].layers[-1].weight, std=0.3)
    return model


def assert_same_but_for_rounding(found, wanted):
    """Of two ``Instances``, in any order: scores that are equal but for rounding change places."""
    assert found.image_size == wanted.image_size
    first, second = (
        torch.cat((x.pred_classes[:, None], x.scores[:, None], x.pred_boxes.tensor / 100), 1)
        for x in (found, wanted)
    )
    distance = (first[:, None] - second[None]).abs().amax(-1)
    assert distance.amin(0).max() < 1e-4 and distance.amin(1).max() < 1e-4
