"""Attention of the encoder and the decoder: which projections are added, which are concatenated."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# In float16 a query beyond this only overflows: the softmax has long become one-hot.
_FLOAT16_QUERY_LIMIT = 4096.0


def _multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None, dropout: float
) -> Tensor:
    """Softmax attention over heads that lie side by side in the last dimension.

    Args:
        query: ``(B, Q, num_heads * c)``, or ``(1, Q, num_heads * c)`` for all images.
        key: ``(B, N, num_heads * c)``. value: ``(B, N, num_heads * d)``.
        mask: bool ``(B, 1, 1, N)``, True where a key takes part; None: all do.
        dropout: probability with which an attention weight is dropped.

    Returns:
        ``(B, Q, num_heads * d)``.
    """
    query = query.expand(key.shape[0], -1, -1)
    query, key, value = (
        x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    width = value.shape[-1]
    # The kernels that never write down the attention weights want all heads equally wide; a third
    # of the time on a CPU. A trace, to count operations or to export, is better without zeros.
    if width < query.shape[-1] and not torch.jit.is_tracing():
        value = F.pad(value, (0, query.shape[-1] - width))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return out[..., :width].transpose(1, 2).flatten(-2)


class EncoderSelfAttention(nn.Module):
    """Self-attention with ``Q = K = proj(x + position)`` and ``V = proj(x)``.

    The three projections are one packed matrix, as in :class:`torch.nn.MultiheadAttention`, whose
    Xavier bounds depend on that.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """``x``, ``position``: ``(B, N, D)``; ``mask``: bool ``(B, 1, 1, N)``, True where valid."""
        d_model = x.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        query_key = F.linear(x + position, weight[: 2 * d_model], bias[: 2 * d_model])
        query, key = query_key.chunk(2, dim=-1)
        value = F.linear(x, weight[2 * d_model :], bias[2 * d_model :])
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(
            _multi_head_attention(query, key, value, self.num_heads, mask, dropout)
        )


class DecoderSelfAttention(nn.Module):
    """Self-attention among queries: ``Q, K = proj(C) + proj(P)``, each its own; ``V = proj(C)``."""

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content_proj = nn.Linear(d_model, d_model)
        self.query_position_proj = nn.Linear(d_model, d_model)
        self.key_content_proj = nn.Linear(d_model, d_model)
        self.key_position_proj = nn.Linear(d_model, d_model)
        self.value_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, position: Tensor) -> Tensor:
        """``content`` C and ``position`` P (the positional queries): ``(B, Q, D)``."""
        query = self.query_content_proj(content) + self.query_position_proj(position)
        key = self.key_content_proj(content) + self.key_position_proj(position)
        value = self.value_proj(content)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(
            _multi_head_attention(query, key, value, self.num_heads, None, dropout)
        )


class ModulatedCrossAttention(nn.Module):
    """Cross-attention whose heads compare content with content and place with place.

    Every head is ``[content | position]``, so a score is the sum of a content and a positional
    similarity (paper, equation 5). The positional part of the query arrives modulated by the
    anchor's width and height (equation 6); see :func:`dab_detr.modeling.decoder.modulate_encoding`.

    Args:
        d_model, num_heads, dropout: as everywhere.
        add_position_to_content: also add the projected positional query to the query's content and
            the key's position to the key's content. The first decoder layer does, because its
            content queries hold nothing yet.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        add_position_to_content: bool = False,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content_proj = nn.Linear(d_model, d_model)
        self.query_position_proj = nn.Linear(d_model, d_model) if add_position_to_content else None
        self.query_encoding_proj = nn.Linear(d_model, d_model)
        self.key_content_proj = nn.Linear(d_model, d_model)
        self.key_encoding_proj = nn.Linear(d_model, d_model)
        self.value_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        query_encoding: Tensor,
        memory: Tensor,
        key_encoding: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Attend from the queries to the encoder's memory.

        What is the same for all images may come once, with a batch dimension of 1.

        Args:
            content, position: content and positional queries, ``(B or 1, Q, D)``.
            query_encoding: sine encoding of the anchors' centres, scaled and modulated,
                ``(B or 1, Q, D)``.
            memory: ``(B, N, D)``.
            key_encoding: sine encoding of its cells, ``(B or 1, N, D)``.
            mask: bool ``(B, 1, 1, N)``, True where a cell is valid; None: all are.

        Returns:
            ``(B, Q, D)``.
        """
        query_content = self.query_content_proj(content)
        query_position = self.query_encoding_proj(query_encoding)
        key_content = self.key_content_proj(memory)
        key_position = self.key_encoding_proj(key_encoding)
        if self.query_position_proj is not None:
            query_content = query_content + self.query_position_proj(position)
            key_content = key_content + key_position
        if query_position.dtype == torch.float16:
            query_position = query_position.clamp(-_FLOAT16_QUERY_LIMIT, _FLOAT16_QUERY_LIMIT)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(
            _multi_head_attention(
                self._join(query_content, query_position),
                self._join(key_content, key_position),
                self.value_proj(memory),
                self.num_heads,
                mask,
                dropout,
            )
        )

    def _join(self, content: Tensor, position: Tensor) -> Tensor:
        """Two ``(B, N, H * c)`` to ``(B, N, H * 2c)``, each head ``[content | position]``."""
        halves = torch.broadcast_tensors(content, position)
        halves = [x.unflatten(-1, (self.num_heads, -1)) for x in halves]
        return torch.cat(halves, dim=-1).flatten(-2)
