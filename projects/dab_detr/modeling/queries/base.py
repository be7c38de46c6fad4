"""The interface of a query formulation."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from dab_detr.modeling.structures import Encoding, Memory, Outputs, Queries, Targets


class QueryFormulation(nn.Module, ABC):
    """Defines the queries, their encoding for each layer, and how a layer's output refines them.

    The decoder calls ``forward`` once, then for each layer :meth:`encode`, the layer's
    cross-attention, :meth:`boxes` and :meth:`move`, and :meth:`outputs` at the end. To add a
    formulation, write a subclass and a config that names it under ``model.transformer.queries``.

    Attributes:
        uses_targets: whether ``forward`` needs the ground truth in training, as denoising does.
    """

    uses_targets = False

    @abstractmethod
    def build_cross_attention(self, index: int) -> nn.Module:
        """The cross-attention of the decoder's layer ``index``, which becomes part of that layer.

        It is called with the content ``(B or 1, Q, D)``, the layer's :class:`Encoding` from
        :meth:`encode`, and the :class:`Memory`, and returns ``(B, Q, D)``.
        """

    def reset_queries(self) -> None:
        """Initialise the queries themselves.

        A formulation that does so here initialises its other weights later, in
        ``reset_parameters``. Otherwise everything is initialised together, module by module, see
        :mod:`dab_detr.modeling.initialization`.
        """

    @abstractmethod
    def forward(self, memory: Memory, targets: Targets | None = None) -> Queries:
        """The queries before the first layer; they may depend on the memory.

        Args:
            memory: the encoder's output.
            targets: ground truth, in training if :attr:`uses_targets`; else None.
        """

    @abstractmethod
    def encode(self, index: int, content: Tensor, state: Any) -> Encoding:
        """The positional encoding for layer ``index``; ``content`` is ``(B or 1, Q, D)``."""

    @abstractmethod
    def boxes(self, offset: Tensor, state: Any) -> Tensor:
        """Box logits, float32 ``(B, Q, 4)``, from the output of the box head ``(B, Q, 4)``."""

    def refine(self, state: Any, content: Tensor, box_head: nn.Module) -> Any:
        """The state after a layer; by default it does not change.

        Args:
            state: the state before the layer. content: the layer's output ``(B, Q, D)``.
            box_head: the layer's box head, which maps ``(B, Q, D)`` to ``(B, Q, 4)``.
        """
        return state

    def anchors(self, state: Any) -> Tensor | None:
        """What the first layer starts from, only to be shown; None by default: nothing.

        Args:
            state: before the first layer.

        Returns:
            cxcywh in 0..1, float32 ``(B or 1, Q, 4)``.
        """
        return None

    def outputs(self, class_logits: Tensor, box_logits: Tensor, queries: Queries) -> Outputs:
        """The predictions for the criterion.

        A formulation with denoising queries separates their predictions here and returns them as
        ``extra``, with their known matches.

        Args:
            class_logits: ``(L, B, Q, K)``. box_logits: ``(L, B, Q, 4)``.
            queries: the result of ``forward``.
        """
        return Outputs(class_logits, box_logits, extra=queries.extra)
