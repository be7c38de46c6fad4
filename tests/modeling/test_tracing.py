"""Detectron2's way to TorchScript: what one size has been traced with holds for all sizes."""

import pytest
import torch
from detectron2.export import TracingAdapter

SIZES = [(48, 80), (96, 40), (33, 57)]


def model_for_tracing(small_model):
    model = small_model(num_select=8).eval()
    # scores and boxes that are well apart
    model.transformer.decoder.class_head.weight.data.mul_(5)
    for head in model.transformer.decoder.box_heads:
        head.layers[-1].weight.data.normal_(std=0.1)
    return model


def inputs_of(*sizes):
    return [{"image": torch.randint(256, (3, *size), dtype=torch.uint8)} for size in sizes]


def compare(adapter, traced, model, inputs):
    results = adapter.outputs_schema(traced(*(x["image"] for x in inputs)))
    expected = model(inputs)
    assert len(results) == len(expected)
    for found, wanted in zip(results, expected):
        found, wanted = found["instances"], wanted["instances"]
        assert tuple(int(x) for x in found.image_size) == wanted.image_size
        assert torch.equal(found.pred_classes, wanted.pred_classes)
        torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            found.pred_boxes.tensor, wanted.pred_boxes.tensor, atol=1e-2, rtol=0
        )


@pytest.mark.parametrize("divisibility", [0, 32])
@torch.no_grad()
def test_a_trace_holds_for_other_sizes(small_model, monkeypatch, divisibility):
    model = model_for_tracing(small_model)
    monkeypatch.setattr(type(model.backbone), "size_divisibility", divisibility)
    inputs = inputs_of((64, 64))
    adapter = TracingAdapter(model, inputs)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    for size in SIZES:
        compare(adapter, traced, model, inputs_of(size))


@pytest.mark.parametrize("sizes", [((64, 64), (64, 64)), ((64, 64), (40, 90))], ids=str)
@torch.no_grad()
def test_a_trace_of_a_batch_holds_for_other_sizes(small_model, sizes):
    model = model_for_tracing(small_model)
    adapter = TracingAdapter(model, inputs_of(*sizes))
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    for first, second in zip(SIZES, [(48, 80), *SIZES[:2]]):
        compare(adapter, traced, model, inputs_of(first, second))
