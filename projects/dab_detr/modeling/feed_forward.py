"""The feed-forward block of encoder and decoder layers."""

from torch import Tensor, nn


class FeedForward(nn.Module):
    """``linear2(PReLU(linear1(x)))``; the PReLU has one learned slope, as published."""

    def __init__(self, d_model: int, ffn_dim: int, dropout: float = 0.0):
        super().__init__()
        self.linear1 = nn.Linear(d_model, ffn_dim)
        self.activation = nn.PReLU()
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(ffn_dim, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., d_model)`` to ``(..., d_model)``."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))
