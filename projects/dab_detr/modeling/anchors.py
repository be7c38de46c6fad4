"""Anchor boxes as queries: learned starts, patterns, frozen centres (paper sections 4.1, 4.5)."""

import math

import torch
from torch import Tensor, nn

from dab_detr.modeling.boxes import bounded_logits

ANCHOR_INITS = ("normal", "uniform", "grid")
# Side of the anchors that start on a grid, as a share of the image's: a medium object.
GRID_ANCHOR_SIZE = 0.25


class AnchorQueries(nn.Module):
    """The decoder's input: learned anchors and, with patterns, learned content queries.

    Centres and sizes are two parameters: frozen centres get no gradient and no weight decay.

    Args:
        num_queries: number of anchors Q.
        d_model: width of the content queries.
        query_dim: 4 for boxes, 2 for points without a size (Table 3's 2-D ablation).
        num_patterns: M pattern embeddings (Anchor DETR); each anchor is used once with each of
            them. 0: content queries start at zero.
        init: how anchors start: ``normal`` draws all logits from N(0, 1) as published; ``uniform``
            draws the centres from U(0, 1), sizes as ``normal``; ``grid`` puts boxes of a quarter of
            the image's side on a regular grid.
        freeze_centers: keep the learned anchors' x and y as they start (Table 8, "fixed x, y"). The
            decoder still moves them from layer to layer.

    Raises:
        ValueError: for a ``query_dim`` or an ``init`` that is not one of those above.
    """

    def __init__(
        self,
        num_queries: int = 300,
        d_model: int = 256,
        *,
        query_dim: int = 4,
        num_patterns: int = 0,
        init: str = "normal",
        freeze_centers: bool = False,
    ):
        super().__init__()
        if query_dim not in (2, 4):
            raise ValueError(f"query_dim is {query_dim}; it has to be 4 (boxes) or 2 (points).")
        if init not in ANCHOR_INITS:
            raise ValueError(f"anchor_init is {init!r}; choose one of {', '.join(ANCHOR_INITS)}.")
        self.num_queries = num_queries
        self.num_patterns = num_patterns
        self.d_model = d_model
        centers, sizes = _initial_logits(num_queries, init)
        self.center_logits = nn.Parameter(centers, requires_grad=not freeze_centers)
        self.size_logits = nn.Parameter(sizes) if query_dim == 4 else None
        self.patterns = nn.Embedding(num_patterns, d_model) if num_patterns else None

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Lay out the queries for a batch, pattern-major: pattern 0 with all anchors, then 1, ...

        Returns:
            content ``(B, max(M, 1) * Q, d_model)`` and
            anchor_logits ``(B, max(M, 1) * Q, query_dim)``, float32.
        """
        anchor_logits = self.center_logits
        if self.size_logits is not None:
            anchor_logits = torch.cat((anchor_logits, self.size_logits), dim=1)
        if self.patterns is None:
            content = anchor_logits.new_zeros(self.num_queries, self.d_model)
        else:
            content = self.patterns.weight.repeat_interleave(self.num_queries, dim=0)
            anchor_logits = anchor_logits.repeat(self.num_patterns, 1)
        return (
            content.expand(batch_size, -1, -1),
            anchor_logits.float().expand(batch_size, -1, -1),
        )


def _initial_logits(num_queries: int, init: str) -> tuple[Tensor, Tensor]:
    """Start values: center_logits ``(Q, 2)`` and size_logits ``(Q, 2)``."""
    sizes = torch.randn(num_queries, 2)
    if init == "normal":
        return torch.randn(num_queries, 2), sizes
    if init == "uniform":
        return bounded_logits(torch.logit(torch.rand(num_queries, 2))), sizes
    return torch.logit(_grid_centers(num_queries)), torch.logit(
        torch.full((num_queries, 2), GRID_ANCHOR_SIZE)
    )


def _grid_centers(count: int) -> Tensor:
    """Spread ``count`` points over rows of as equal lengths as possible: ``(count, 2)`` in 0..1."""
    num_rows = max(1, math.isqrt(count))
    points = []
    for row in range(num_rows):
        length = count // num_rows + (row < count % num_rows)
        points += [((i + 0.5) / length, (row + 0.5) / num_rows) for i in range(length)]
    return torch.tensor(points).reshape(-1, 2)
