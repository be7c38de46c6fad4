"""The data that the parts of the model exchange, as named tuples of tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Memory(NamedTuple):
    """The encoder's output, which the queries attend to.

    Attributes:
        cells: ``(B, N, D)``, the feature map row by row.
        key_encoding: positional encoding of the cells, ``(B, N, D)``; ``(1, N, D)`` if no image is
            padded.
        padding_mask: bool ``(B or 1, h, w)``, True where a cell is padding; h * w is N.
        valid_mask: bool ``(B, 1, 1, N)``, True where a cell is valid; None: all cells are.
    """

    cells: Tensor
    key_encoding: Tensor
    padding_mask: Tensor
    valid_mask: Tensor | None


class Targets(NamedTuple):
    """The ground truth of a batch, one image after the other.

    Attributes:
        labels: int64 ``(T,)`` in 0..K-1.
        boxes_cxcywh: float32 ``(T, 4)`` in 0..1, relative to each image without its padding.
        counts: number of objects per image; the sum is T.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    counts: Sequence[int]


class Matches(NamedTuple):
    """Matched pairs of all layers and images; four int64 vectors of equal length.

    Attributes:
        layer, image, query: indices of the prediction. target: index into ``Targets.labels``.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


class Outputs(NamedTuple):
    """Predictions of all layers, and extra predictions.

    Attributes:
        class_logits: ``(L, B, Q, K)``.
        box_logits: float32 ``(L, B, Q, 4)``, whose sigmoid is cxcywh.
        matches: matched pairs, if they are already known (denoising); None: the matcher finds them.
        num_groups: number of groups of equal size that the Q queries consist of, one after the
            other; each group is matched separately.
        extra: further predictions by name, such as those of the encoder or of denoising queries;
            each has its own losses, under its name.
    """

    class_logits: Tensor
    box_logits: Tensor
    matches: Matches | None = None
    num_groups: int = 1
    extra: "Mapping[str, Outputs] | None" = None


class Queries(NamedTuple):
    """The queries that pass through the decoder's layers.

    Attributes:
        content: content queries ``(B, Q, D)``; ``(1, Q, D)`` if they are the same for all images.
        state: the formulation's data beside the content, such as anchors; only the formulation
            itself uses it.
        attention_mask: bool, broadcastable to ``(B, heads, Q, Q)``, True where a query may attend
            to another in self-attention; None: everywhere.
        extra: extra predictions of the formulation, see :class:`Outputs`.
    """

    content: Tensor
    state: Any
    attention_mask: Tensor | None = None
    extra: Mapping[str, Outputs] | None = None


class Encoding(NamedTuple):
    """The positional encoding of the queries for one layer.

    Attributes:
        position: positional queries ``(B or 1, Q, D)``, for self-attention.
        cross: input of the formulation's cross-attention, compared with the keys' encoding.
    """

    position: Tensor
    cross: Any
