"""The transformer encoder: DETR's, with a content-dependent scale on the positional encoding."""

from torch import Tensor, nn

from dab_detr.modeling.attention import EncoderSelfAttention, require_heads
from dab_detr.modeling.initialization import defer_initialization
from dab_detr.modeling.mlp import MLP, FeedForward


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward block, each with residual and LayerNorm (post-norm)."""

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int, dropout: float = 0.0):
        super().__init__()
        self.self_attention = EncoderSelfAttention(d_model, num_heads, dropout)
        self.self_attention_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, ffn_dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, valid_mask: Tensor | None) -> Tensor:
        """``x``, ``position``: ``(B, N, D)``; ``valid_mask``: see :class:`Encoder`."""
        update = self.self_attention(x, position, valid_mask)
        x = self.self_attention_norm(x + self.dropout(update))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer`; one MLP, shared by all layers, scales the key encoding.

    The paper does not mention this scale; the published code and weights have it.

    Args:
        num_layers: number of layers; with 0 the feature map is returned unchanged.
        d_model: width, a multiple of ``num_heads``.
        num_heads: number of attention heads.
        ffn_dim: hidden width of the feed-forward blocks.
        dropout: probability in training.
    """

    def __init__(
        self,
        num_layers: int = 6,
        d_model: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
    ):
        super().__init__()
        require_heads("encoder", d_model, num_heads)
        with defer_initialization():
            self.layers = nn.ModuleList(
                EncoderLayer(d_model, num_heads, ffn_dim, dropout) for _ in range(num_layers)
            )
            self.position_scale = MLP(d_model, d_model, d_model, 2) if num_layers else None

    def forward(self, x: Tensor, key_encoding: Tensor, valid_mask: Tensor | None) -> Tensor:
        """Refine the projected feature map.

        Args:
            x: cells ``(B, N, D)``. key_encoding: ``(B or 1, N, D)``.
            valid_mask: bool ``(B, 1, 1, N)``, True where a cell is valid; None: all are.

        Returns:
            Memory ``(B, N, D)``.
        """
        for layer in self.layers:
            x = layer(x, key_encoding * self.position_scale(x), valid_mask)
        return x
