"""Sine encodings of feature map cells (keys) and of anchor boxes (queries); paper section 4.2."""

import math

import torch
from torch import Tensor, nn


def sine_encoding(coordinates: Tensor, num_features: int, temperature: float) -> Tensor:
    """Encode every number with sines and cosines of ``num_features / 2`` frequencies.

    ``PE_2i(v) = sin(2 pi v / T^(2i / num_features))`` and ``PE_2i+1(v)`` the cosine of the same,
    sine and cosine interleaved (paper, equation 2, with the 2 pi of the published code).

    Args:
        coordinates: any shape ``(...)``, in 0..1.
        num_features: length of a number's encoding, even.
        temperature: T; small values give narrow similarity peaks, large values wide ones.

    Returns:
        float32 ``(..., num_features)``, in -1..1.
    """
    exponents = torch.arange(0, num_features, 2, device=coordinates.device, dtype=torch.float32)
    wavelengths = temperature ** (exponents / num_features)
    angles = coordinates.float().unsqueeze(-1) * (2 * math.pi) / wavelengths
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def encode_anchors(anchors: Tensor, d_model: int, temperature: float) -> Tensor:
    """Encode anchors, ``d_model / 2`` features per number, in the published order (y, x, w, h).

    Args:
        anchors: ``(..., 4)`` as cxcywh or ``(..., 2)`` as x, y; in 0..1.
        d_model: width of the model, a multiple of 4.
        temperature: see :func:`sine_encoding`.

    Returns:
        float32 ``(..., 2 * d_model)`` for boxes, ``(..., d_model)`` for points.
    """
    encoding = sine_encoding(anchors, d_model // 2, temperature)
    center_x, center_y, *size = encoding.unbind(-2)
    return torch.cat((center_y, center_x, *size), dim=-1)


class SineKeyEncoding(nn.Module):
    """Positional encoding of the feature map's cells, by their position among the valid cells.

    Args:
        d_model: width of the model, a multiple of 4; one half for y, one for x.
        temperature: temperature of the keys; the paper tunes it to 20 (section 4.4, table 6).
    """

    def __init__(self, d_model: int, temperature: float = 20.0):
        super().__init__()
        self.d_model = d_model
        self.temperature = temperature

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Encode the cumulative count of valid cells at each cell, divided by the total count.

        Args:
            padding_mask: bool ``(B, h, w)``, True where a cell is padding.

        Returns:
            float32 ``(B, h, w, d_model)``, features ordered (y, x).
        """
        valid = ~padding_mask
        y = valid.cumsum(dim=1, dtype=torch.float32)
        x = valid.cumsum(dim=2, dtype=torch.float32)
        y = y / (y[:, -1:, :] + 1e-6)
        x = x / (x[:, :, -1:] + 1e-6)
        return torch.cat(
            [sine_encoding(v, self.d_model // 2, self.temperature) for v in (y, x)], dim=-1
        )
