"""Multi-layer perceptrons: of heads and anchor modules, and of the layers."""

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        in_dim, hidden_dim, out_dim: widths.
        num_layers: number of linear layers, at least 1.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., in_dim)`` to ``(..., out_dim)``."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


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
