"""The transformer: key encoding, encoder, query formulation and decoder."""

import math

import torch
from torch import Tensor, nn

from dab_detr.modeling.decoder import Decoder
from dab_detr.modeling.encoder import Encoder
from dab_detr.modeling.initialization import reset_parameters, xavier_uniform_
from dab_detr.modeling.position_encoding import SineKeyEncoding
from dab_detr.modeling.queries.base import QueryFormulation
from dab_detr.modeling.structures import Memory, Outputs, Targets


class DABTransformer(nn.Module):
    """Maps projected feature maps to the logits of all queries (paper, figure 5).

    Args:
        d_model: D, width of all parts, a multiple of 4.
        key_temperature: temperature of the keys' sine encoding, see :class:`SineKeyEncoding`.
        encoder: refines the cells of the feature map.
        queries: the query formulation, which also builds the decoder's cross-attention.
        decoder: layers and heads.

    Raises:
        ValueError: if ``d_model`` is not a multiple of 4.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        queries: QueryFormulation,
        decoder: Decoder,
        d_model: int = 256,
        key_temperature: float = 20.0,
    ):
        super().__init__()
        if d_model % 4:
            raise ValueError(f"d_model is {d_model}; it has to be a multiple of 4.")
        self.d_model = d_model
        self.key_encoding = SineKeyEncoding(d_model, key_temperature)
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        decoder.connect(queries)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all weights, in the order of the data flow.

        Weights of linear layers get Xavier's initialisation, except for the heads and the patterns,
        which keep PyTorch's. Every class starts with probability 0.01 (RetinaNet), every box as its
        anchor.
        """
        reset_parameters(self.encoder)
        self.queries.reset_queries()
        reset_parameters(self.decoder.layers)
        reset_parameters(self.queries)
        reset_parameters(self.decoder.class_head)
        reset_parameters(self.decoder.box_heads)
        xavier_uniform_((self.encoder, self.decoder.layers, self.queries))
        nn.init.constant_(self.decoder.class_head.bias, -math.log(99))
        for box_head in self.decoder.box_heads:
            nn.init.zeros_(box_head.layers[-1].weight)
            nn.init.zeros_(box_head.layers[-1].bias)

    def forward(
        self,
        features: Tensor,
        padding_mask: Tensor | None = None,
        *,
        all_layers: bool = True,
        targets: Targets | None = None,
    ) -> Outputs:
        """Predict from a batch of projected feature maps.

        Args:
            features: ``(B, D, h, w)``.
            padding_mask: bool ``(B, h, w)``, True where a cell is padding; None: nowhere.
            all_layers: predict from every layer or only from the last one.
            targets: in training, if the formulation has :attr:`~QueryFormulation.uses_targets`.

        Returns:
            class_logits ``(L, B, Q, K)`` and box_logits ``(L, B, Q, 4)``; with patterns Q is
            ``num_patterns * num_queries``.
        """
        memory = self.encode(features, padding_mask)
        return self.decoder(self.queries, memory, all_layers=all_layers, targets=targets)

    def encode(self, features: Tensor, padding_mask: Tensor | None = None) -> Memory:
        """What the queries attend to; arguments as for :meth:`forward`."""
        cells = features.flatten(2).transpose(1, 2)  # (B, hw, D)
        if padding_mask is None:
            valid_mask = None
            padding_mask = features.new_zeros((1, *features.shape[-2:]), dtype=torch.bool)
        else:
            valid_mask = ~padding_mask.flatten(1)[:, None, None, :]  # (B, 1, 1, hw)
        # (B, hw, D); without padding (1, hw, D), the same for all images
        key_encoding = self.key_encoding(padding_mask).flatten(1, 2).to(cells.dtype)
        cells = self.encoder(cells, key_encoding, valid_mask)
        return Memory(cells, key_encoding, padding_mask, valid_mask)
