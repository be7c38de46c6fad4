"""Means over the steps since the last log."""

import pytest
import torch

from dab_detr.engine.means import StepMeans


def test_a_mean_is_over_the_steps_that_have_the_name_and_are_finite():
    """Not all steps have all losses; numbers by hand."""
    means = StepMeans()
    for values in ({"a": 2.0, "b": 8.0}, {"a": 3.0}, {"a": float("nan"), "c": 5.0}, {"a": 10.0}):
        means.add({name: torch.tensor(value) for name, value in values.items()})
    resumed = StepMeans()
    resumed.load_state_dict(means.state_dict())
    for found in (means.read(), resumed.read()):
        assert found == pytest.approx({"a": 5.0, "b": 8.0, "c": 5.0})
    assert means.read() == {}
