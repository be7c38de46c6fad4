"""The DAB decoder: anchors become positional queries, steer the attention and are refined."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dab_detr.modeling.attention import DecoderSelfAttention, ModulatedCrossAttention
from dab_detr.modeling.boxes import bounded_logits
from dab_detr.modeling.feed_forward import FeedForward
from dab_detr.modeling.mlp import MLP
from dab_detr.modeling.position_encoding import encode_anchors

# A fiftieth of a pixel in the largest test image. Below it 1 / size would leave float16's range
# (and reach infinity in float32 for anchor logits under about -100).
_MIN_ANCHOR_SIZE = 2.0**-16
_FLOAT16_MAX = torch.finfo(torch.float16).max


def modulate_encoding(query_encoding: Tensor, reference_size: Tensor, anchors: Tensor) -> Tensor:
    """Stretch the positional similarity to the anchor's width and height (paper, equation 6).

    Args:
        query_encoding: encoded centres ``(..., D)``, ordered (y, x).
        reference_size: (w_ref, h_ref), ``(..., 2)`` in 0..1, predicted from the content query.
        anchors: cxcywh ``(..., 4)`` in 0..1.

    Returns:
        float32 ``(..., D)``: the y half times h_ref / h, the x half times w_ref / w, bounded to the
        range of float16.
    """
    scale = reference_size.float() / anchors[..., 2:].float().clamp(min=_MIN_ANCHOR_SIZE)
    # (w, h) to (h, w), one factor for each half of the encoding
    scale = scale.flip(-1).repeat_interleave(query_encoding.shape[-1] // 2, dim=-1)
    return (query_encoding * scale).clamp(-_FLOAT16_MAX, _FLOAT16_MAX)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward block, post-norm.

    Args:
        is_first: see ``add_position_to_content`` of :class:`ModulatedCrossAttention`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
        *,
        is_first: bool = False,
    ):
        super().__init__()
        self.self_attention = DecoderSelfAttention(d_model, num_heads, dropout)
        self.self_attention_norm = nn.LayerNorm(d_model)
        self.cross_attention = ModulatedCrossAttention(
            d_model, num_heads, dropout, add_position_to_content=is_first
        )
        self.cross_attention_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, ffn_dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        query_encoding: Tensor,
        memory: Tensor,
        key_encoding: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """New content queries ``(B, Q, D)``; arguments as in :class:`ModulatedCrossAttention`."""
        update = self.self_attention(content, position)
        content = self.self_attention_norm(content + self.dropout(update))
        update = self.cross_attention(content, position, query_encoding, memory, key_encoding, mask)
        content = self.cross_attention_norm(content + self.dropout(update))
        return self.feed_forward_norm(content + self.dropout(self.feed_forward(content)))


class Decoder(nn.Module):
    """The stack of decoder layers with the heads that refine the anchors between them.

    Args:
        num_layers: L, at least 1.
        num_classes: K, outputs of the class head, which all layers share.
        query_dim: 4 for anchor boxes, 2 for points.
        query_temperature: of the anchors' sine encoding. All released weights need 10000.
        modulate_hw_attention: scale the positional similarity by the anchors' width and height.
            Needs ``query_dim=4``.
        update_anchors: hand each layer's refined anchors to the next; otherwise all layers see the
            learned ones (Table 3's ablation).
        share_box_head: one box head for all layers, or one each.

    Raises:
        ValueError: if points are to be modulated by a size that they do not have.
    """

    def __init__(
        self,
        num_layers: int,
        num_classes: int,
        d_model: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
        *,
        query_dim: int = 4,
        query_temperature: float = 10000.0,
        modulate_hw_attention: bool = True,
        update_anchors: bool = True,
        share_box_head: bool = True,
    ):
        super().__init__()
        if modulate_hw_attention and query_dim != 4:
            raise ValueError(
                f"modulate_hw_attention needs anchors with width and height, but query_dim is "
                f"{query_dim}: set modulate_hw_attention=False or query_dim=4."
            )
        self.d_model = d_model
        self.query_dim = query_dim
        self.query_temperature = query_temperature
        self.update_anchors = update_anchors
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, num_heads, ffn_dim, dropout, is_first=index == 0)
            for index in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.position_mlp = MLP(query_dim * d_model // 2, d_model, d_model, 2)
        self.position_scale = MLP(d_model, d_model, d_model, 2) if num_layers > 1 else None
        self.reference_size = MLP(d_model, d_model, 2, 2) if modulate_hw_attention else None
        self.class_head = nn.Linear(d_model, num_classes)
        self.box_heads = nn.ModuleList(
            MLP(d_model, d_model, 4, 3) for _ in range(1 if share_box_head else num_layers)
        )

    def forward(
        self,
        content: Tensor,
        anchor_logits: Tensor,
        memory: Tensor,
        key_encoding: Tensor,
        mask: Tensor | None,
        *,
        all_layers: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Send the queries through the layers.

        Args:
            content: ``(B, Q, D)``. anchor_logits: float32 ``(B, Q, query_dim)``. Queries that are
                the same for all images may come once, with a batch dimension of 1.
            memory, key_encoding, mask: see :class:`ModulatedCrossAttention`.
            all_layers: predict from every layer (training) or from the last one only.

        Returns:
            class_logits ``(L, B, Q, K)`` and box_logits ``(L, B, Q, 4)`` float32, whose sigmoid is
            cxcywh; L is 1 unless ``all_layers``.
        """
        class_logits, box_logits = [], []
        # What a layer predicts from keeps its gradient, so that the box loss of a layer also
        # reaches the head's work in the layer before; what steers the attention does not.
        reference_logits = anchor_logits
        for index, layer in enumerate(self.layers):
            box_head = self.box_heads[index % len(self.box_heads)]
            is_last = index == len(self.layers) - 1
            position, query_encoding = self._encode(content, anchor_logits, is_first=index == 0)
            content = layer(content, position, query_encoding, memory, key_encoding, mask)
            if all_layers or is_last:
                normed = self.norm(content)
                class_logits.append(self.class_head(normed))
                box_logits.append(self._refine(box_head(normed), reference_logits))
            if self.update_anchors and not is_last:
                refined = self._refine(box_head(content), anchor_logits)
                reference_logits = refined[..., : self.query_dim]
                anchor_logits = reference_logits.detach()
        return torch.stack(class_logits), torch.stack(box_logits)

    def _encode(
        self, content: Tensor, anchor_logits: Tensor, *, is_first: bool
    ) -> tuple[Tensor, Tensor]:
        """Positional queries and (modulated) encoded centres, both ``(B, Q, D)``."""
        anchors = anchor_logits.sigmoid()
        encoding = encode_anchors(anchors, self.d_model, self.query_temperature)
        position = self.position_mlp(encoding.to(content.dtype))
        query_encoding = encoding[..., : self.d_model]
        if not is_first:
            query_encoding = query_encoding * self.position_scale(content).float()
        if self.reference_size is not None:
            reference_size = self.reference_size(content).float().sigmoid()
            query_encoding = modulate_encoding(query_encoding, reference_size, anchors)
        return position, query_encoding.to(content.dtype)

    def _refine(self, offset: Tensor, anchor_logits: Tensor) -> Tensor:
        """Box logits ``(B, Q, 4)``: the head's output, moved by the anchor where it has a say."""
        return offset.float() + F.pad(bounded_logits(anchor_logits), (0, 4 - self.query_dim))
