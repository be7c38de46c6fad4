"""Attention modules of the encoder and the decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dab_detr.modeling.initialization import reset_parameters
from dab_detr.modeling.structures import Encoding, Memory

# Larger float16 queries would only overflow: the softmax is already one-hot at this size.
_FLOAT16_QUERY_LIMIT = 4096.0
# PyTorch 2.6 does not have it yet
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def require_heads(part: str, d_model: int, num_heads: int) -> None:
    """Raise ValueError, naming the part of the model, if the width is no multiple of the heads."""
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
    """Scaled dot-product attention; the heads are side by side in the last dimension.

    Args:
        query: ``(B, Q, num_heads * c)``, or ``(1, Q, num_heads * c)`` for all images.
        key: ``(B, N, num_heads * c)``. value: ``(B, N, num_heads * d)``.
        allowed: bool, broadcastable to ``(B, num_heads, Q, N)``, True where a query may attend to
            a key; None: everywhere.
        dropout: probability that an attention weight is dropped.

    Returns:
        ``(B, Q, num_heads * d)``.
    """
    query = query.expand(key.shape[0], -1, -1)
    query, key, value = (
        x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    width = value.shape[-1]
    # PyTorch's fused kernels, which save a third of the time on a CPU, need values as wide as the
    # queries. A trace, for counting operations or export, is better without the padding.
    is_traced = torch.jit.is_tracing() or _is_exporting()
    if width < query.shape[-1] and not is_traced:
        value = F.pad(value, (0, query.shape[-1] - width))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
    return out[..., :width].transpose(1, 2).flatten(-2)


class _Attention(nn.Module):
    """Common parts: number of heads, dropout of the attention weights, output projection."""

    def __init__(self, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout

    def reset_parameters(self) -> None:
        """Initialise the projections; some biases start at zero."""
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
    """Self-attention with ``Q, K = proj(x + position)``, ``V = proj(x)``; three projections.

    They are initialised like one packed matrix, as in :class:`torch.nn.MultiheadAttention`: with
    its Xavier bound, and biases of zero.
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
    """Self-attention among queries: ``Q, K = proj(C) + proj(P)`` (four), ``V = proj(C)``."""

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
        """Attend among the queries; returns ``(B, Q, D)``.

        Args:
            content, position: content C and positional queries P, ``(B or 1, Q, D)``.
            attention_mask: see :class:`Queries`.
        """
        query = self.query_content_proj(content) + self.query_position_proj(position)
        key = self.key_content_proj(content) + self.key_position_proj(position)
        return self._attend(query, key, self.value_proj(content), attention_mask)


class ConditionalCrossAttention(_Attention):
    """Cross-attention whose heads compare content with content and position with position.

    Each head of queries and keys is ``[content | position]``, so a score is the sum of a content
    and a positional similarity (Conditional DETR; DAB-DETR, equation 5). The positional part of
    DAB-DETR's queries is already modulated by the anchor's width and height (equation 6); see
    :func:`dab_detr.modeling.queries.anchor_boxes.modulate_encoding`.

    Args:
        d_model, num_heads, dropout: width, number of heads, dropout of the attention weights.
        add_position_to_content: also add the projected positional query to the query's content and
            the key's position to the key's content, as the first layer does.
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
            memory: the encoder's output, which is attended to.

        Returns:
            ``(B, Q, D)``.
        """
        query_content = self.query_content_proj(content)
        query_encoding = self.query_encoding_proj(encoding.cross)
        key_content = self.key_content_proj(memory.cells)
        key_encoding = self.key_encoding_proj(memory.key_encoding)
        if self.query_position_proj is not None:
            query_content = query_content + self.query_position_proj(encoding.position)
            key_content = key_content + key_encoding
        if query_encoding.dtype == torch.float16:
            query_encoding = query_encoding.clamp(-_FLOAT16_QUERY_LIMIT, _FLOAT16_QUERY_LIMIT)
        return self._attend(
            self._join(query_content, query_encoding),
            self._join(key_content, key_encoding),
            self.value_proj(memory.cells),
            memory.valid_mask,
        )

    def _join(self, content: Tensor, position: Tensor) -> Tensor:
        """Two ``(B, N, H * c)`` to ``(B, N, H * 2c)``, each head ``[content | position]``."""
        halves = torch.broadcast_tensors(content, position)
        halves = [x.unflatten(-1, (self.num_heads, -1)) for x in halves]
        return torch.cat(halves, dim=-1).flatten(-2)
