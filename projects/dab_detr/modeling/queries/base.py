"""The interface of a query formulation."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from dab_detr.modeling.structures import Encoding, Memory, Outputs, Queries, Targets


class QueryFormulation(nn.Module, ABC):
    """What the queries are, how a layer sees them, and how its output moves them.

    The decoder calls ``forward`` once, then for each layer :meth:`encode`, the layer's
    cross-attention, :meth:`boxes` and :meth:`move`, and :meth:`outputs` at the end. A formulation
    is a subclass and a config that names it under ``model.transformer.queries``.

    Attributes:
        uses_targets: ``forward`` wants the batch's objects in training, as denoising does.
    """

    uses_targets = False

    @abstractmethod
    def build_cross_attention(self, index: int) -> nn.Module:
        """The cross-attention of the decoder's layer ``index``, which becomes part of that layer.

        It is called with the content ``(B or 1, Q, D)``, the :class:`Encoding` that :meth:`encode`
        gave for the layer, and the :class:`Memory`, and returns ``(B, Q, D)``.
        """

    def reset_queries(self) -> None:
        """Draw what the queries are before the first layer.

        Where a formulation draws it here, ``reset_parameters`` draws the rest, later; otherwise it
        is drawn with the rest, part by part, as :mod:`dab_detr.modeling.initialization` does.
        """

    @abstractmethod
    def forward(self, memory: Memory, targets: Targets | None = None) -> Queries:
        """The queries before the first layer, where they depend on the image from its memory.

        Args:
            memory: the encoder's output.
            targets: in training, if :attr:`uses_targets`; else None.
        """

    @abstractmethod
    def encode(self, index: int, content: Tensor, state: Any) -> Encoding:
        """What layer ``index`` is given of the queries beside their content ``(B or 1, Q, D)``."""

    @abstractmethod
    def boxes(self, offset: Tensor, state: Any) -> Tensor:
        """Box logits, float32 ``(B, Q, 4)``, from the box head's output ``(B, Q, 4)``."""

    def move(self, state: Any, content: Tensor, box_head: nn.Module) -> Any:
        """The state after a layer; as it was, unless a formulation says otherwise.

        Args:
            state: before the layer. content: the layer's output ``(B, Q, D)``.
            box_head: the layer's, ``(B, Q, D)`` to ``(B, Q, 4)``.
        """
        return state

    def outputs(self, class_logits: Tensor, box_logits: Tensor, queries: Queries) -> Outputs:
        """What the criterion is given of the layers' predictions.

        A formulation with denoising queries takes those apart here and gives them as ``extra``,
        with the matches that it knows.

        Args:
            class_logits: ``(L, B, Q, K)``. box_logits: ``(L, B, Q, 4)``.
            queries: what ``forward`` has given.
        """
        return Outputs(class_logits, box_logits, extra=queries.extra)
