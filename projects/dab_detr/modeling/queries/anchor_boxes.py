"""DAB-DETR's queries: anchor boxes, refined from layer to layer (paper, section 4)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dab_detr.modeling.attention import ConditionalCrossAttention
from dab_detr.modeling.boxes import bounded_logits
from dab_detr.modeling.initialization import defer_initialization, reset_parameters
from dab_detr.modeling.mlp import MLP
from dab_detr.modeling.position_encoding import encode_anchors
from dab_detr.modeling.queries.base import QueryFormulation
from dab_detr.modeling.structures import Encoding, Memory, Queries, Targets

ANCHOR_INITS = ("normal", "uniform", "grid")
# Side of anchors that start on a grid, relative to the image's: a medium object.
GRID_ANCHOR_SIZE = 0.25
# A fiftieth of a pixel in the largest test image. For smaller sizes 1 / size would exceed float16's
# range (and be infinite in float32 for anchor logits below about -100).
_MIN_ANCHOR_SIZE = 2.0**-16
_FLOAT16_MAX = torch.finfo(torch.float16).max


class AnchorState(NamedTuple):
    """Anchors between two layers.

    Boxes are predicted relative to anchors with gradient, so that a layer's box loss also trains
    the box head of the previous layer; the anchors for the attention are detached.

    Attributes:
        anchor_logits: anchors for the attention, float32 ``(B or 1, Q, query_dim)``.
        reference_logits: anchors for the box prediction, with the same shape and values.
    """

    anchor_logits: Tensor
    reference_logits: Tensor


class AnchorBoxQueries(QueryFormulation):
    """Learned anchors and, with patterns, learned content queries.

    Centres and sizes are separate parameters, so that frozen centres get no gradient and no weight
    decay.

    Args:
        num_queries: number of anchors, at least 1.
        num_layers: number of decoder layers.
        d_model, num_heads, dropout: of the cross-attention.
        query_dim: 4 for boxes, 2 for points without a size (Table 3's 2-D ablation).
        num_patterns: number M of pattern embeddings (Anchor DETR); each anchor is combined with
            each of them. 0: content queries start at zero.
        anchor_init: initial anchors: ``normal`` draws all logits from N(0, 1) as published;
            ``uniform`` draws the centres from U(0, 1), sizes as ``normal``; ``grid`` places boxes
            of a quarter of the image's side on a regular grid.
        freeze_anchor_centers: keep the learned anchors' x and y at their initial values (Table 8,
            "fixed x, y"). They are still refined from layer to layer.
        modulate_hw_attention: scale the positional similarity by the anchors' width and height
            (equation 6). Needs ``query_dim=4``.
        update_anchors: pass each layer's refined anchors to the next; otherwise all layers use the
            learned ones (Table 3's ablation).
        temperature: temperature of the anchors' sine encoding. All released weights need 10000.

    Raises:
        ValueError: for other values than those above, and for ``modulate_hw_attention`` with
            points, which have no size.
    """

    def __init__(
        self,
        num_queries: int = 300,
        *,
        num_layers: int = 6,
        d_model: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        query_dim: int = 4,
        num_patterns: int = 0,
        anchor_init: str = "normal",
        freeze_anchor_centers: bool = False,
        modulate_hw_attention: bool = True,
        update_anchors: bool = True,
        temperature: float = 10000.0,
    ):
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; it has to be at least 1.")
        if query_dim not in (2, 4):
            raise ValueError(f"query_dim is {query_dim}; it has to be 4 (boxes) or 2 (points).")
        if anchor_init not in ANCHOR_INITS:
            raise ValueError(
                f"anchor_init is {anchor_init!r}; choose one of {', '.join(ANCHOR_INITS)}."
            )
        if modulate_hw_attention and query_dim != 4:
            raise ValueError(
                f"modulate_hw_attention needs anchors with width and height, but query_dim is "
                f"{query_dim}: set modulate_hw_attention=False or query_dim=4."
            )
        self.num_queries = num_queries
        self.num_patterns = num_patterns
        self.d_model = d_model
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_dim = query_dim
        self.anchor_init = anchor_init
        self.update_anchors = update_anchors
        self.temperature = temperature
        self.center_logits = nn.Parameter(
            torch.empty(num_queries, 2), requires_grad=not freeze_anchor_centers
        )
        self.size_logits = nn.Parameter(torch.empty(num_queries, 2)) if query_dim == 4 else None
        with defer_initialization():
            self.patterns = nn.Embedding(num_patterns, d_model) if num_patterns else None
            self.position_mlp = MLP(query_dim * d_model // 2, d_model, d_model, 2)
            self.position_scale = MLP(d_model, d_model, d_model, 2) if num_layers > 1 else None
            self.reference_size = MLP(d_model, d_model, 2, 2) if modulate_hw_attention else None
            self.reset_queries()

    @torch.no_grad()
    def reset_queries(self) -> None:
        """Initialise the anchors, then the patterns."""
        centers, sizes = _initial_logits(self.num_queries, self.anchor_init)
        self.center_logits.copy_(centers)
        if self.size_logits is not None:
            self.size_logits.copy_(sizes)
        if self.patterns is not None:
            self.patterns.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the MLPs."""
        for child in self.children():
            if child is not self.patterns:
                reset_parameters(child)

    def build_cross_attention(self, index: int) -> nn.Module:
        # the first layer's content queries carry no information yet
        return ConditionalCrossAttention(
            self.d_model, self.num_heads, self.dropout, add_position_to_content=index == 0
        )

    def forward(self, memory: Memory, targets: Targets | None = None) -> Queries:
        """The same queries for all images: pattern 0 with all anchors, then pattern 1, ...

        Returns:
            content ``(1, max(M, 1) * num_queries, d_model)`` and an :class:`AnchorState`.
        """
        anchor_logits = self.center_logits
        if self.size_logits is not None:
            anchor_logits = torch.cat((anchor_logits, self.size_logits), dim=1)
        if self.patterns is None:
            content = anchor_logits.new_zeros(self.num_queries, self.d_model)
        else:
            content = self.patterns.weight.repeat_interleave(self.num_queries, dim=0)
            anchor_logits = anchor_logits.repeat(self.num_patterns, 1)
        anchor_logits = anchor_logits.float()[None]
        content = content[None].to(memory.cells.dtype)
        return Queries(content, AnchorState(anchor_logits, anchor_logits))

    def encode(self, index: int, content: Tensor, state: AnchorState) -> Encoding:
        """Positional queries, and encoded centres that are scaled by the content and modulated."""
        anchors = state.anchor_logits.sigmoid()
        encoding = encode_anchors(anchors, self.d_model, self.temperature)
        position = self.position_mlp(encoding.to(content.dtype))
        centers = encoding[..., : self.d_model]
        if index > 0:
            centers = centers * self.position_scale(content).float()
        if self.reference_size is not None:
            reference_size = self.reference_size(content).float().sigmoid()
            centers = modulate_encoding(centers, reference_size, anchors)
        return Encoding(position, centers.to(content.dtype))

    def boxes(self, offset: Tensor, state: AnchorState) -> Tensor:
        return self._refine(offset, state.reference_logits)

    def refine(self, state: AnchorState, content: Tensor, box_head: nn.Module) -> AnchorState:
        if not self.update_anchors:
            return state
        refined = self._refine(box_head(content), state.anchor_logits)[..., : self.query_dim]
        return AnchorState(refined.detach(), refined)

    def anchors(self, state: AnchorState) -> Tensor:
        """The anchors; points are boxes of size 0."""
        return F.pad(state.anchor_logits.sigmoid(), (0, 4 - self.query_dim))

    def _refine(self, offset: Tensor, anchor_logits: Tensor) -> Tensor:
        """Box logits ``(B, Q, 4)``: head's output plus anchor logits; points have no size."""
        return offset.float() + F.pad(bounded_logits(anchor_logits), (0, 4 - self.query_dim))


def modulate_encoding(centers: Tensor, reference_size: Tensor, anchors: Tensor) -> Tensor:
    """Scale the positional similarity by the anchor's width and height (paper, equation 6).

    Args:
        centers: encoded centres ``(..., D)``, ordered (y, x).
        reference_size: (w_ref, h_ref), ``(..., 2)`` in 0..1, predicted from the content query.
        anchors: cxcywh ``(..., 4)`` in 0..1.

    Returns:
        float32 ``(..., D)``: the y half times h_ref / h, the x half times w_ref / w, clamped to
        float16's range.
    """
    scale = reference_size.float() / anchors[..., 2:].float().clamp(min=_MIN_ANCHOR_SIZE)
    # (w, h) to (h, w), one factor for each half of the encoding
    scale = scale.flip(-1).repeat_interleave(centers.shape[-1] // 2, dim=-1)
    return (centers * scale).clamp(-_FLOAT16_MAX, _FLOAT16_MAX)


def _initial_logits(num_queries: int, init: str) -> tuple[Tensor, Tensor]:
    """Initial center_logits ``(Q, 2)`` and size_logits ``(Q, 2)``."""
    sizes = torch.randn(num_queries, 2)
    if init == "normal":
        return torch.randn(num_queries, 2), sizes
    if init == "uniform":
        return bounded_logits(torch.logit(torch.rand(num_queries, 2))), sizes
    return torch.logit(_grid_centers(num_queries)), torch.logit(
        torch.full((num_queries, 2), GRID_ANCHOR_SIZE)
    )


def _grid_centers(count: int) -> Tensor:
    """``count`` points in rows of nearly equal length: ``(count, 2)`` in 0..1."""
    num_rows = max(1, math.isqrt(count))
    points = []
    for row in range(num_rows):
        length = count // num_rows + (row < count % num_rows)
        points += [((i + 0.5) / length, (row + 0.5) / num_rows) for i in range(length)]
    return torch.tensor(points).reshape(-1, 2)
