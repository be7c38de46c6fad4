"""Attention of the encoder and the decoder: which projections are added, which are concatenated."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dab_detr.modeling.initialization import reset_parameters
from dab_detr.modeling.structures import Encoding, Memory

# In float16 a query beyond this only overflows: the softmax has long become one-hot.
_FLOAT16_QUERY_LIMIT = 4096.0


def require_heads(part: str, d_model: int, num_heads: int) -> None:
    """Raise ValueError, naming the part of the model, if the width does not divide into heads."""
    if d_model % num_heads:
        raise ValueError(
            f"d_model of the {part} is {d_model}; it has to be a multiple of num_heads={num_heads}."
        )


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    allowed: Tensor | None,
    dropout: float,
) -> Tensor:
    """Softmax attention over heads that lie side by side in the last dimension.

    Args:
        query: ``(B, Q, num_heads * c)``, or ``(1, Q, num_heads * c)`` for all images.
        key: ``(B, N, num_heads * c)``. value: ``(B, N, num_heads * d)``.
        allowed: bool, broadcast to ``(B, num_heads, Q, N)``, True where a query may attend to a
            key; None: everywhere.
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
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    return out[..., :width].transpose(1, 2).flatten(-2)


class _Attention(nn.Module):
    """What all have: heads, dropout of the attention weights, an output projection."""

    def __init__(self, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout

    def reset_parameters(self) -> None:
        """Draw the projections; those that start without a bias get none."""
        for child in self.children():
            reset_parameters(child)
        self._zero_biases()

    def _zero_biases(self) -> None:
        nn.init.zeros_(self.out_proj.bias)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(
            multi_head_attention(query, key, value, self.num_heads, allowed, dropout)
        )


class EncoderSelfAttention(_Attention):
    """Self-attention with ``Q = K = proj(x + position)``, each its own, and ``V = proj(x)``.

    The three projections start as one packed matrix would, as in
    :class:`torch.nn.MultiheadAttention`: within its Xavier bound, with biases of zero.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0):
        super().__init__(num_heads, dropout)
        self.query_proj = nn.Linear(d_model, d_model)
        self.key_proj = nn.Linear(d_model, d_model)
        self.value_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        for projection in (self.query_proj, self.key_proj, self.value_proj):
            projection.packed_with = 3
        self._zero_biases()

    def _zero_biases(self) -> None:
        for projection in self.children():
            nn.init.zeros_(projection.bias)

    def forward(self, x: Tensor, position: Tensor, valid_mask: Tensor | None) -> Tensor:
        """``x``, ``position``: ``(B, N, D)``; ``valid_mask``: see :class:`Memory`."""
        positioned = x + position
        query, key = self.query_proj(positioned), self.key_proj(positioned)
        return self._attend(query, key, self.value_proj(x), valid_mask)


class DecoderSelfAttention(_Attention):
    """Self-attention among queries: ``Q, K = proj(C) + proj(P)``, each its own; ``V = proj(C)``."""

    def __init__(self, d_model: int, num_heads: int, dropout: float = 0.0):
        super().__init__(num_heads, dropout)
        self.query_content_proj = nn.Linear(d_model, d_model)
        self.query_position_proj = nn.Linear(d_model, d_model)
        self.key_content_proj = nn.Linear(d_model, d_model)
        self.key_position_proj = nn.Linear(d_model, d_model)
        self.value_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self._zero_biases()

    def forward(
        self, content: Tensor, position: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """New content ``(B, Q, D)``.

        Args:
            content, position: content C and positional queries P, ``(B or 1, Q, D)``.
            attention_mask: see :class:`Queries`.
        """
        query = self.query_content_proj(content) + self.query_position_proj(position)
        key = self.key_content_proj(content) + self.key_position_proj(position)
        return self._attend(query, key, self.value_proj(content), attention_mask)


class ConditionalCrossAttention(_Attention):
    """Cross-attention whose heads compare content with content and place with place.

    Every head is ``[content | place]``, so a score is the sum of a content and a positional
    similarity (Conditional DETR; DAB-DETR's equation 5). The positional part of DAB-DETR's queries
    arrives modulated by the anchor's width and height (equation 6); see
    :func:`dab_detr.modeling.queries.anchor_boxes.modulate_encoding`.

    Args:
        d_model, num_heads, dropout: width, number of heads, dropout of the attention weights.
        add_position_to_content: also add the projected positional query to the query's content and
            the key's place to the key's content, as the first layer does.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        add_position_to_content: bool = False,
    ):
        super().__init__(num_heads, dropout)
        self.query_content_proj = nn.Linear(d_model, d_model)
        self.query_position_proj = nn.Linear(d_model, d_model) if add_position_to_content else None
        self.query_encoding_proj = nn.Linear(d_model, d_model)
        self.key_content_proj = nn.Linear(d_model, d_model)
        self.key_encoding_proj = nn.Linear(d_model, d_model)
        self.value_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self._zero_biases()

    def forward(self, content: Tensor, encoding: Encoding, memory: Memory) -> Tensor:
        """Attend from the queries to the encoder's memory.

        Args:
            content: content queries ``(B or 1, Q, D)``.
            encoding: positional queries and, as ``cross``, encoded centres, ``(B or 1, Q, D)``.
            memory: what to attend to.

        Returns:
            ``(B, Q, D)``.
        """
        query_content = self.query_content_proj(content)
        query_place = self.query_encoding_proj(encoding.cross)
        key_content = self.key_content_proj(memory.cells)
        key_place = self.key_encoding_proj(memory.key_encoding)
        if self.query_position_proj is not None:
            query_content = query_content + self.query_position_proj(encoding.position)
            key_content = key_content + key_place
        if query_place.dtype == torch.float16:
            query_place = query_place.clamp(-_FLOAT16_QUERY_LIMIT, _FLOAT16_QUERY_LIMIT)
        return self._attend(
            self._join(query_content, query_place),
            self._join(key_content, key_place),
            self.value_proj(memory.cells),
            memory.valid_mask,
        )

    def _join(self, content: Tensor, place: Tensor) -> Tensor:
        """Two ``(B, N, H * c)`` to ``(B, N, H * 2c)``, each head ``[content | place]``."""
        halves = torch.broadcast_tensors(content, place)
        halves = [x.unflatten(-1, (self.num_heads, -1)) for x in halves]
        return torch.cat(halves, dim=-1).flatten(-2)
