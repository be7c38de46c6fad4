"""DAB-DETR from one backbone feature map to logits, without a word of Detectron2."""

import math

import torch
from torch import Tensor, nn

from dab_detr.modeling.anchors import AnchorQueries
from dab_detr.modeling.decoder import Decoder
from dab_detr.modeling.encoder import Encoder
from dab_detr.modeling.position_encoding import SineKeyEncoding


class DABTransformer(nn.Module):
    """Projection, key encoding, encoder, anchor queries and decoder (paper, figure 5).

    Args:
        in_channels: channels of the feature map.
        num_classes: K; classes are scored independently, there is no background class.
        d_model: D, width of the model, a multiple of 4 and of ``num_heads``.
        num_heads, num_encoder_layers, num_decoder_layers, ffn_dim, dropout: of the layers.
        num_queries, num_patterns, query_dim, anchor_init, freeze_anchor_centers: see
            :class:`~dab_detr.modeling.anchors.AnchorQueries`.
        modulate_hw_attention, update_anchors, share_box_head, query_temperature: see
            :class:`~dab_detr.modeling.decoder.Decoder`.
        key_temperature: see :class:`~dab_detr.modeling.position_encoding.SineKeyEncoding`.

    Raises:
        ValueError: for widths that do not divide and for contradicting switches.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        d_model: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        num_queries: int = 300,
        num_patterns: int = 0,
        query_dim: int = 4,
        anchor_init: str = "normal",
        freeze_anchor_centers: bool = False,
        modulate_hw_attention: bool = True,
        update_anchors: bool = True,
        share_box_head: bool = True,
        key_temperature: float = 20.0,
        query_temperature: float = 10000.0,
    ):
        super().__init__()
        if d_model % 4 or d_model % num_heads:
            raise ValueError(
                f"d_model is {d_model}; it has to be a multiple of 4 and of num_heads={num_heads}."
            )
        for name, value in (
            ("num_decoder_layers", num_decoder_layers),
            ("num_queries", num_queries),
            ("num_classes", num_classes),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it has to be at least 1.")
        self.dropout = dropout
        self.input_proj = nn.Conv2d(in_channels, d_model, kernel_size=1)
        self.key_encoding = SineKeyEncoding(d_model, key_temperature)
        self.encoder = Encoder(num_encoder_layers, d_model, num_heads, ffn_dim, dropout)
        self.anchors = AnchorQueries(
            num_queries,
            d_model,
            query_dim=query_dim,
            num_patterns=num_patterns,
            init=anchor_init,
            freeze_centers=freeze_anchor_centers,
        )
        self.decoder = Decoder(
            num_decoder_layers,
            num_classes,
            d_model,
            num_heads,
            ffn_dim,
            dropout,
            query_dim=query_dim,
            query_temperature=query_temperature,
            modulate_hw_attention=modulate_hw_attention,
            update_anchors=update_anchors,
            share_box_head=share_box_head,
        )
        self._reset_parameters()

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """Xavier for the transformer's matrices; the heads keep PyTorch's start and get biases."""
        heads = set(self.decoder.class_head.parameters()) | set(self.decoder.box_heads.parameters())
        for module in (self.encoder, self.decoder):
            for parameter in module.parameters():
                if parameter.dim() > 1 and parameter not in heads:
                    nn.init.xavier_uniform_(parameter)
        # Every class starts with probability 0.01 (RetinaNet), every box as its anchor.
        nn.init.constant_(self.decoder.class_head.bias, -math.log(99))
        for box_head in self.decoder.box_heads:
            nn.init.zeros_(box_head.layers[-1].weight)
            nn.init.zeros_(box_head.layers[-1].bias)

    def forward(
        self, features: Tensor, padding_mask: Tensor | None = None, *, all_layers: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Predict from a batch of feature maps.

        Args:
            features: ``(B, in_channels, h, w)``.
            padding_mask: bool ``(B, h, w)``, True where a cell is padding; None: nowhere.
            all_layers: see :meth:`Decoder.forward`.

        Returns:
            class_logits ``(L, B, Q, K)`` and box_logits ``(L, B, Q, 4)``; with patterns Q is
            ``num_patterns * num_queries``.
        """
        batch_size, _, height, width = features.shape
        cells = self.input_proj(features).flatten(2).transpose(1, 2)  # (B, hw, D)
        if padding_mask is None:
            mask = None
            padding_mask = features.new_zeros((1, height, width), dtype=torch.bool)
        else:
            mask = ~padding_mask.flatten(1)[:, None, None, :]  # (B, 1, 1, hw)
        # (B, hw, D); without padding (1, hw, D), the same for all images
        key_encoding = self.key_encoding(padding_mask).flatten(1, 2).to(cells.dtype)
        memory = self.encoder(cells, key_encoding, mask)
        # All images start with the same queries, so that the first layer's self-attention is
        # computed once; only dropout would tell them apart.
        alike = not (self.training and self.dropout)
        content, anchor_logits = self.anchors(1 if alike else batch_size)
        return self.decoder(
            content.to(memory.dtype),
            anchor_logits,
            memory,
            key_encoding,
            mask,
            all_layers=all_layers,
        )
