"""Where dropout takes part in training, and that it takes none in testing."""

import pytest
import torch
from torch import nn

from dab_detr.modeling import Encoding, Memory
from dab_detr.modeling.attention import (
    ConditionalCrossAttention,
    DecoderSelfAttention,
    EncoderSelfAttention,
)
from dab_detr.modeling.decoder import DecoderLayer
from dab_detr.modeling.encoder import EncoderLayer
from dab_detr.modeling.mlp import FeedForward

WIDTH = 16


def cells(count):
    return [torch.randn(2, 6, WIDTH) for _ in range(count)]


def surroundings():
    """What a decoder layer is given beside its queries' content."""
    return Encoding(*cells(2)), Memory(*cells(2), None, None)


def decoder_layer(d_model, num_heads, ffn_dim, dropout):
    layer = DecoderLayer(d_model, num_heads, ffn_dim, dropout)
    layer.cross_attention = ConditionalCrossAttention(d_model, num_heads, dropout)
    return layer


LAYERS = {
    EncoderLayer: lambda: [*cells(2), None],
    decoder_layer: lambda: [*cells(1), *surroundings()],
}


ATTENTIONS = {
    EncoderSelfAttention: lambda: [*cells(2), None],
    DecoderSelfAttention: lambda: cells(2),
    ConditionalCrossAttention: lambda: [*cells(1), *surroundings()],
}


@pytest.mark.parametrize("kind", ATTENTIONS)
@torch.no_grad()
def test_attention_weights_are_dropped_in_training_only(kind):
    inputs = ATTENTIONS[kind]()
    dropping, without = kind(WIDTH, 4, 0.5), kind(WIDTH, 4, 0.0)
    without.load_state_dict(dropping.state_dict())
    expected = without(*inputs)
    assert torch.equal(dropping.eval()(*inputs), expected)
    assert not torch.allclose(dropping.train()(*inputs), expected, atol=1e-3)
    # what is left is scaled up, so that the mean stays
    mean = torch.stack([dropping(*inputs) for _ in range(1000)]).mean(0)
    torch.testing.assert_close(mean, expected, atol=0.15, rtol=0)


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_every_branch_of_a_layer_is_dropped(kind):
    layer = kind(WIDTH, 4, 32, 0.5)
    first, *rest = LAYERS[kind]()
    layer.dropout.p = 1.0
    expected = first
    for name, norm in layer.named_children():
        if name.endswith("norm"):
            expected = norm(expected)
    torch.testing.assert_close(layer(first, *rest), expected)
    without = kind(WIDTH, 4, 32, 0.0)
    without.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(first, *rest), without(first, *rest))


@torch.no_grad()
def test_the_feed_forward_block_drops_between_its_matrices():
    block = FeedForward(WIDTH, 32, 0.5)
    block.dropout.p = 1.0
    assert torch.equal(block(*cells(1)), block.linear2.bias.expand(2, 6, WIDTH))


def test_dropout_of_the_model_reaches_every_layer(small_transformer):
    model = small_transformer(dropout=0.25)
    found = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    # in 2 layers of the encoder and 3 of the decoder, around and inside the feed-forward block
    assert list(found.values()) == [0.25] * 10
    weights = [m.dropout for m in model.modules() if isinstance(m, tuple(ATTENTIONS))]
    assert weights == [0.25] * 8
