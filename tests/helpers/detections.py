"""Compares detections of the same image."""

import torch


def assert_same_but_for_rounding(found, wanted):
    """Of two ``Instances``, in any order: scores that are equal but for rounding change places."""
    assert found.image_size == wanted.image_size
    first, second = (
        torch.cat((x.pred_classes[:, None], x.scores[:, None], x.pred_boxes.tensor / 100), 1)
        for x in (found, wanted)
    )
    distance = (first[:, None] - second[None]).abs().amax(-1)
    assert distance.amin(0).max() < 1e-4 and distance.amin(1).max() < 1e-4
