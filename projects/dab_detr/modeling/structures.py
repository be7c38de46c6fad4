"""What the parts of the model hand to each other, as named tuples of tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Memory(NamedTuple):
    """The encoder's output, as the queries attend to it.

    Attributes:
        cells: ``(B, N, D)``, row by row of the feature map.
        key_encoding: encoded places of the cells, ``(B, N, D)``; ``(1, N, D)`` if no image is
            padded.
        padding_mask: bool ``(B or 1, h, w)``, True where a cell is padding; h * w is N.
        valid_mask: bool ``(B, 1, 1, N)``, True where a cell is valid; None: all are.
    """

    cells: Tensor
    key_encoding: Tensor
    padding_mask: Tensor
    valid_mask: Tensor | None


class Targets(NamedTuple):
    """The objects of a batch, one image after the other.

    Attributes:
        labels: int64 ``(T,)`` in 0..K-1.
        boxes_cxcywh: float32 ``(T, 4)`` in 0..1 of each image without its padding.
        counts: number of objects of each image; sums to T.
    """

    labels: Tensor
    boxes_cxcywh: Tensor
    counts: Sequence[int]


class Matches(NamedTuple):
    """Matched pairs of all layers and images; four int64 vectors of one length.

    Attributes:
        layer, image, query: of the prediction. target: index into ``Targets.labels``.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor


class Outputs(NamedTuple):
    """Predictions of all layers, and what else is predicted beside them.

    Attributes:
        class_logits: ``(L, B, Q, K)``.
        box_logits: float32 ``(L, B, Q, 4)``, whose sigmoid is cxcywh.
        matches: which prediction belongs to which object, where that is known (denoising); None:
            the matcher finds out.
        num_groups: the Q queries are so many groups of equal size, one after the other, and each
            group is matched by itself.
        extra: further predictions by name, such as those of the encoder or of denoising queries;
            each has losses of its own, under its name.
    """

    class_logits: Tensor
    box_logits: Tensor
    matches: Matches | None = None
    num_groups: int = 1
    extra: "Mapping[str, Outputs] | None" = None


class Queries(NamedTuple):
    """What goes round the decoder's layers.

    Attributes:
        content: content queries ``(B, Q, D)``; ``(1, Q, D)`` if they are the same for all images.
        state: what the formulation knows of its queries beside the content, such as anchors; only
            the formulation itself looks into it.
        attention_mask: bool, broadcast to ``(B, heads, Q, Q)``, True where a query may attend to
            another in self-attention; None: everywhere.
        extra: predictions that the formulation has made on its way, see :class:`Outputs`.
    """

    content: Tensor
    state: Any
    attention_mask: Tensor | None = None
    extra: Mapping[str, Outputs] | None = None


class Encoding(NamedTuple):
    """Queries as one layer sees them, beside their content.

    Attributes:
        position: positional queries ``(B or 1, Q, D)``, for self-attention.
        cross: what the formulation's own cross-attention compares with the keys' encoding.
    """

    position: Tensor
    cross: Any
