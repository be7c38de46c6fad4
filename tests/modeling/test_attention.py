import math

import torch

from dab_detr.modeling import Encoding, Memory
from dab_detr.modeling.attention import (
    ConditionalCrossAttention,
    DecoderSelfAttention,
    EncoderSelfAttention,
)

BATCH, QUERIES, CELLS, WIDTH, HEADS = 2, 5, 7, 32, 4


def softmax_attention(query, key, value, valid=None):
    """One head after the other, one query after the other; ``valid`` is (B, N)."""
    out = torch.zeros(len(query), query.shape[1], value.shape[-1])
    c, d = query.shape[-1] // HEADS, value.shape[-1] // HEADS
    for b in range(len(query)):
        for head in range(HEADS):
            k, v = key[b, :, head * c : (head + 1) * c], value[b, :, head * d : (head + 1) * d]
            for q in range(query.shape[1]):
                scores = k @ query[b, q, head * c : (head + 1) * c] / math.sqrt(c)
                if valid is not None:
                    scores[~valid[b]] = -math.inf
                weights = scores.exp() / scores.exp().sum()
                out[b, q, head * d : (head + 1) * d] = weights @ v
    return out


def apply(linear, x):
    return x @ linear.weight.T + linear.bias


def padding():
    valid = torch.ones(BATCH, CELLS, dtype=torch.bool)
    valid[1, 4:] = False
    return valid, valid[:, None, None, :]


@torch.no_grad()
def test_encoder_self_attention():
    attention = EncoderSelfAttention(WIDTH, HEADS)
    x, position = torch.randn(2, BATCH, CELLS, WIDTH)
    valid, mask = padding()
    query = apply(attention.query_proj, x + position)
    key = apply(attention.key_proj, x + position)
    value = apply(attention.value_proj, x)
    expected = apply(attention.out_proj, softmax_attention(query, key, value, valid))
    torch.testing.assert_close(attention(x, position, mask), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_decoder_self_attention():
    attention = DecoderSelfAttention(WIDTH, HEADS)
    content, position = torch.randn(2, BATCH, QUERIES, WIDTH)
    query = apply(attention.query_content_proj, content) + apply(
        attention.query_position_proj, position
    )
    key = apply(attention.key_content_proj, content) + apply(attention.key_position_proj, position)
    value = apply(attention.value_proj, content)
    expected = apply(attention.out_proj, softmax_attention(query, key, value))
    torch.testing.assert_close(attention(content, position), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_decoder_self_attention_under_a_mask():
    """Two groups of queries that do not see each other are as each of them alone."""
    attention = DecoderSelfAttention(WIDTH, HEADS)
    content, position = torch.randn(2, BATCH, QUERIES, WIDTH)
    group = torch.tensor([0, 0, 0, 1, 1])
    together = attention(content, position, group[:, None] == group)
    for number in (0, 1):
        own = group == number
        alone = attention(content[:, own], position[:, own])
        torch.testing.assert_close(together[:, own], alone, atol=1e-5, rtol=1e-4)


def cross_attend(attention, content, position, encoding, memory, key_encoding, mask):
    given = Memory(memory, key_encoding, None, mask)
    return attention(content, Encoding(position, encoding), given)


def cross_attention_inputs():
    content, position, encoding = torch.randn(3, BATCH, QUERIES, WIDTH)
    memory, key_encoding = torch.randn(2, BATCH, CELLS, WIDTH)
    return content, position, encoding, memory, key_encoding


def interleave_heads(content, position):
    """[content | position] of each head, head after head."""
    c = WIDTH // HEADS
    parts = []
    for head in range(HEADS):
        parts += [content[..., head * c : (head + 1) * c], position[..., head * c : (head + 1) * c]]
    return torch.cat(parts, dim=-1)


@torch.no_grad()
def test_cross_attention_joins_content_and_position_in_every_head():
    for first in (False, True):
        attention = ConditionalCrossAttention(WIDTH, HEADS, add_position_to_content=first)
        content, position, encoding, memory, key_encoding = cross_attention_inputs()
        valid, mask = padding()
        query = apply(attention.query_content_proj, content)
        key = apply(attention.key_content_proj, memory)
        key_position = apply(attention.key_encoding_proj, key_encoding)
        if first:
            query = query + apply(attention.query_position_proj, position)
            key = key + key_position
        query = interleave_heads(query, apply(attention.query_encoding_proj, encoding))
        key = interleave_heads(key, key_position)
        value = apply(attention.value_proj, memory)
        expected = apply(attention.out_proj, softmax_attention(query, key, value, valid))
        actual = cross_attend(attention, content, position, encoding, memory, key_encoding, mask)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_padded_cells_get_no_gradient():
    attention = ConditionalCrossAttention(WIDTH, HEADS)
    content, position, encoding, memory, key_encoding = cross_attention_inputs()
    valid, mask = padding()
    memory.requires_grad_()
    cross_attend(
        attention, content, position, encoding, memory, key_encoding, mask
    ).sum().backward()
    assert (memory.grad[~valid] == 0).all()
    assert (memory.grad[valid] != 0).any()
