"""The decoder: layers, output norm, class and box heads."""

import torch
from torch import Tensor, nn

from dab_detr.modeling.attention import DecoderSelfAttention, require_heads
from dab_detr.modeling.initialization import defer_initialization
from dab_detr.modeling.mlp import MLP, FeedForward
from dab_detr.modeling.queries.base import QueryFormulation
from dab_detr.modeling.structures import Encoding, Memory, Outputs, Targets


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward block, post-norm.

    Args:
        d_model, num_heads, ffn_dim, dropout: see :class:`Decoder`.

    Attributes:
        cross_attention: built by the query formulation; see :meth:`Decoder.connect`.
    """

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int, dropout: float = 0.0):
        super().__init__()
        self.self_attention = DecoderSelfAttention(d_model, num_heads, dropout)
        self.self_attention_norm = nn.LayerNorm(d_model)
        self.register_module("cross_attention", None)
        self.cross_attention_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, ffn_dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        encoding: Encoding,
        memory: Memory,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Update the content queries; returns ``(B, Q, D)``.

        Args:
            content: ``(B or 1, Q, D)``. encoding: of the queries, for this layer.
            memory: the encoder's output. attention_mask: see :class:`Queries`.
        """
        update = self.self_attention(content, encoding.position, attention_mask)
        content = self.self_attention_norm(content + self.dropout(update))
        update = self.cross_attention(content, encoding, memory)
        content = self.cross_attention_norm(content + self.dropout(update))
        return self.feed_forward_norm(content + self.dropout(self.feed_forward(content)))


class Decoder(nn.Module):
    """Decoder layers with heads that predict, and with refinement of the queries between layers.

    Args:
        num_layers: L, at least 1.
        num_classes: K, number of outputs of the class head, which all layers share. Classes are
            scored independently; there is no background class.
        d_model: width, a multiple of ``num_heads``.
        num_heads: number of attention heads.
        ffn_dim: hidden width of the feed-forward blocks.
        dropout: probability in training.
        share_box_head: one box head for all layers, or one per layer.

    Raises:
        ValueError: for sizes that do not fit.
    """

    def __init__(
        self,
        num_layers: int = 6,
        num_classes: int = 80,
        d_model: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        *,
        share_box_head: bool = True,
    ):
        super().__init__()
        require_heads("decoder", d_model, num_heads)
        for name, value in (("num_layers", num_layers), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"{name} of the decoder is {value}; it has to be at least 1.")
        self.dropout = dropout
        with defer_initialization():
            self.layers = nn.ModuleList(
                DecoderLayer(d_model, num_heads, ffn_dim, dropout) for _ in range(num_layers)
            )
            self.norm = nn.LayerNorm(d_model)
            self.class_head = nn.Linear(d_model, num_classes)
            self.box_heads = nn.ModuleList(
                MLP(d_model, d_model, 4, 3) for _ in range(1 if share_box_head else num_layers)
            )

    def connect(self, formulation: QueryFormulation) -> None:
        """Give each layer the cross-attention of a query formulation."""
        with defer_initialization():
            for index, layer in enumerate(self.layers):
                layer.cross_attention = formulation.build_cross_attention(index)

    def forward(
        self,
        formulation: QueryFormulation,
        memory: Memory,
        *,
        all_layers: bool = True,
        targets: Targets | None = None,
    ) -> Outputs:
        """Pass the queries through the layers.

        Args:
            formulation: the one given to :meth:`connect`.
            memory: the encoder's output.
            all_layers: predict from every layer (training) or only from the last one.
            targets: see :meth:`QueryFormulation.forward`.

        Returns:
            class_logits ``(L, B, Q, K)`` and box_logits ``(L, B, Q, 4)``, as returned by
            :meth:`QueryFormulation.outputs`; L is 1 unless ``all_layers``.
        """
        queries = formulation(memory, targets)
        content, state = queries.content, queries.state
        mask = queries.attention_mask
        if (self.training and self.dropout) or (mask is not None and mask.dim() == 4):
            # Dropout and a mask of each image differ between images. Without them, queries that are
            # the same for all images are computed once, up to the first cross-attention.
            content = content.expand(len(memory.cells), -1, -1)
        class_logits, box_logits = [], []
        for index, layer in enumerate(self.layers):
            box_head = self.box_heads[index % len(self.box_heads)]
            is_last = index == len(self.layers) - 1
            encoding = formulation.encode(index, content, state)
            content = layer(content, encoding, memory, mask)
            if all_layers or is_last:
                normed = self.norm(content)
                class_logits.append(self.class_head(normed))
                box_logits.append(formulation.boxes(box_head(normed), state))
            if not is_last:
                state = formulation.refine(state, content, box_head)
        return formulation.outputs(torch.stack(class_logits), torch.stack(box_logits), queries)
