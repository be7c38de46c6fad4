"""The inference copy: the same detections, the model untouched."""

import copy

import pytest
import torch
from detections import assert_same_but_for_rounding
from detectron2.layers import Conv2d
from torch import nn

from dab_detr import inference_copy
from dab_detr.errors import InputError

# two padded batches, one without padding, another padded one
SIZES = [((64, 64), (48, 80)), ((96, 64), (80, 96)), ((64, 80), (64, 80)), ((64, 112), (96, 48))]
# What makes a compiled copy compile, and what follows without: another width, another height, a
# square, other numbers of images.
COMPILED = [
    [((64, 80),), ((64, 96),), ((96, 112),), ((80, 80),)],
    [((64, 80), (64, 80)), ((96, 64),) * 3, ((64, 64),) * 2],
    [((64, 80), (80, 96)), ((64, 80), (96, 48), (48, 64)), ((96, 64), (64, 96))],
]


@pytest.fixture
def model(detector):
    return detector


@torch.no_grad()
def assert_same_detections(actual, expected, inputs):
    for found, wanted in zip(actual(inputs), expected(inputs)):
        assert_same_but_for_rounding(found["instances"], wanted["instances"])


def test_detects_the_same_and_leaves_the_model_alone(model, batch):
    model.train()
    before = copy.deepcopy(model.state_dict())
    fast = inference_copy(model)
    assert model.training and not fast.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert all(
        module.weight.is_contiguous(memory_format=torch.channels_last)
        for module in fast.modules()
        if isinstance(module, Conv2d)
    )
    model.eval()
    for sizes in SIZES:
        assert_same_detections(fast, model, batch(sizes))


@pytest.mark.long
def test_compiled_it_detects_the_same_in_all_sizes(model, batch):
    model.eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fast = inference_copy(model, compile=True)
    graphs = []
    for alike in COMPILED:
        for sizes in alike:
            assert_same_detections(fast, model, batch(sizes))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # backbone, projection and transformer for single images, all for several, a transformer for
    # padding
    assert graphs == [3] * 4 + [6] * 3 + [7] * 3


def test_compiled_it_is_called_without_gradients(model, batch):
    fast = inference_copy(model, compile=True)
    with pytest.raises(RuntimeError, match="no_grad"):
        fast(batch(SIZES[0]))


def test_bfloat16_differs_by_less_than_a_fiftieth(model):
    model.eval()
    features = torch.randn(2, 32, 7, 9)
    padding = torch.zeros(2, 7, 9, dtype=torch.bool)
    padding[1, :, 6:] = True
    fast = inference_copy(model)
    with torch.no_grad():
        expected = model.transformer(features, padding)
        with torch.autocast("cpu", torch.bfloat16):
            actual = fast.transformer(features, padding)
    for found, wanted in zip(actual[:2], expected[:2]):
        difference = (found.float().sigmoid() - wanted.sigmoid()).abs()
        assert difference.max() < 2e-2


def test_what_cannot_work_is_refused(model, monkeypatch):
    with pytest.raises(TypeError, match="not AveragedModel.*[.]module"):
        inference_copy(torch.optim.swa_utils.AveragedModel(model))
    for arguments in ({}, {"compile": True}):
        with pytest.raises(ValueError, match="compile=True and a GPU"):
            inference_copy(model, cuda_graphs=True, **arguments)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match="C\\+\\+ compiler"):
        inference_copy(model, compile=True)
