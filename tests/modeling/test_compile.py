"""torch.compile takes the transformer as one graph, for all sizes of images."""

import copy

import pytest
import torch

from dab_detr.compiling import compile_for_training
from dab_detr.modeling import HungarianMatcher, SetCriterion, Targets

SMALL = {"num_encoder_layers": 1, "num_decoder_layers": 2}


@pytest.fixture(autouse=True)
def forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def padding(batch, height, width):
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[0, height - 1 :] = True
    return mask


@pytest.mark.parametrize(
    "switches, training, padded",
    [
        ({}, True, True),
        ({}, True, False),
        ({}, False, True),
        ({}, False, False),
        ({"num_patterns": 2}, True, True),
        ({"query_dim": 2, "modulate_hw_attention": False}, True, False),
    ],
    ids=str,
)
def test_there_is_no_graph_break(small_transformer, switches, training, padded):
    model = small_transformer(dropout=0.0, **SMALL, **switches).train(training)
    mask = padding(2, 3, 4) if padded else None
    explained = torch._dynamo.explain(model)(torch.randn(2, 32, 3, 4), mask, all_layers=training)
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0, explained.break_reasons


def test_training_in_many_sizes_compiles_few_graphs_and_gives_the_same_gradients(
    small_transformer,
):
    plain = small_transformer(**SMALL)
    compiled = copy.deepcopy(plain)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compile_for_training(compiled, backend=count)
    criterion = SetCriterion(HungarianMatcher())
    # square, oblong, and as many cells as images in the batch
    for height, width in ((4, 4), (5, 4), (6, 7), (4, 9), (7, 7), (2, 3)):
        for mask in (None, padding(2, height, width)):
            features = torch.randn(2, 32, height, width)
            targets = Targets(torch.tensor([0, 3, 4]), torch.rand(3, 4) * 0.4 + 0.2, [1, 2])
            for model in (plain, compiled):
                model.zero_grad()
                losses = criterion(model(features, mask), targets)
                sum(losses.values()).backward()
            wanted = dict(plain.named_parameters())
            for name, parameter in compiled.named_parameters():
                torch.testing.assert_close(
                    parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5, msg=name
                )
    # one without a mask, one with
    assert len(graphs) == 2
