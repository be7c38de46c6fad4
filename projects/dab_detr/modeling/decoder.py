"""The decoder: layers, the norm of their outputs, and the heads that predict from them."""

import torch
from torch import Tensor, nn

from dab_detr.modeling.attention import DecoderSelfAttention, require_heads
from dab_detr.modeling.feed_forward import FeedForward
from dab_detr.modeling.initialization import drawn_later
from dab_detr.modeling.mlp import MLP
from dab_detr.modeling.queries.base import QueryFormulation
from dab_detr.modeling.structures import Encoding, Memory, Outputs, Targets


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward block, post-norm.

    Args:
        d_model, num_heads, ffn_dim, dropout: see :class:`Decoder`.

    Attributes:
        cross_attention: of the query formulation; see :meth:`Decoder.connect`.
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
        """New content queries ``(B, Q, D)``.

        Args:
            content: ``(B or 1, Q, D)``. encoding: of these queries, for this layer.
            memory: what the queries attend to. attention_mask: see :class:`Queries`.
        """
        update = self.self_attention(content, encoding.position, attention_mask)
        content = self.self_attention_norm(content + self.dropout(update))
        update = self.cross_attention(content, encoding, memory)
        content = self.cross_attention_norm(content + self.dropout(update))
        return self.feed_forward_norm(content + self.dropout(self.feed_forward(content)))


class Decoder(nn.Module):
    """The stack of decoder layers with the heads that predict, and refine queries between layers.

    Args:
        num_layers: L, at least 1.
        num_classes: K, outputs of the class head, which all layers share. Classes are scored
            independently, there is no background class.
        d_model: width, a multiple of ``num_heads``.
        num_heads: number of attention heads.
        ffn_dim: width inside the feed-forward blocks.
        dropout: probability, in training.
        share_box_head: one box head for all layers, or one each.

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
        with drawn_later():
            self.layers = nn.ModuleList(
                DecoderLayer(d_model, num_heads, ffn_dim, dropout) for _ in range(num_layers)
            )
            self.norm = nn.LayerNorm(d_model)
            self.class_head = nn.Linear(d_model, num_classes)
            self.box_heads = nn.ModuleList(
                MLP(d_model, d_model, 4, 3) for _ in range(1 if share_box_head else num_layers)
            )

    def connect(self, formulation: QueryFormulation) -> None:
        """Give the layers the cross-attention of a query formulation."""
        with drawn_later():
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
        """Send the queries through the layers.

        Args:
            formulation: what the layers are connected with.
            memory: the encoder's output.
            all_layers: predict from every layer (training) or from the last one only.
            targets: see :meth:`QueryFormulation.forward`.

        Returns:
            class_logits ``(L, B, Q, K)`` and box_logits ``(L, B, Q, 4)``, L being 1 unless
            ``all_layers``, as the formulation hands them on.
        """
        queries = formulation(memory, targets)
        content, state = queries.content, queries.state
        if self.training and self.dropout:
            # Otherwise queries that are the same for all images stay one until the first
            # cross-attention tells the images apart.
            content = content.expand(len(memory.cells), -1, -1)
        class_logits, box_logits = [], []
        for index, layer in enumerate(self.layers):
            box_head = self.box_heads[index % len(self.box_heads)]
            is_last = index == len(self.layers) - 1
            encoding = formulation.encode(index, content, state)
            content = layer(content, encoding, memory, queries.attention_mask)
            if all_layers or is_last:
                normed = self.norm(content)
                class_logits.append(self.class_head(normed))
                box_logits.append(formulation.boxes(box_head(normed), state))
            if not is_last:
                state = formulation.move(state, content, box_head)
        return formulation.outputs(torch.stack(class_logits), torch.stack(box_logits), queries)
