"""Tables of tensor names, this project's and those of other layouts, for both directions.

In a row ``(theirs, ours)`` of templates, ``{i}`` and ``{j}`` stand for numbers and ``{rest}`` for
the end of the name. Both sides of a row use the same placeholders.
"""

import re
from dataclasses import dataclass, field
from typing import Any

ENCODER = "transformer.encoder.layers.{i}."
DECODER = "transformer.decoder.layers.{i}."
# the anchors of the query formulation that other layouts also have
CENTERS, SIZES = "transformer.queries.center_logits", "transformer.queries.size_logits"
# settings that the published code fixes
PUBLISHED_SETTINGS = (
    ("queries", "AnchorBoxQueries"),
    ("query_temperature", 10000),
    ("update_anchors", True),
)
# the projections of the encoder's attention, in the order of packed matrices
QKV = tuple(ENCODER + f"self_attention.{part}_proj.{{rest}}" for part in ("query", "key", "value"))
QUERY_ENCODING = "cross_attention.query_encoding_proj.{rest}"


@dataclass(frozen=True)
class Layout:
    """The tensor names of one program for DAB-DETR.

    Attributes:
        name: as given on the command line.
        mark: a regular expression that matches a tensor name of this layout and of no other.
        rows: see above; the first matching row is used.
        anchors: the tensor (Q, query_dim) with both centres and sizes, if there is one.
        copies: templates ``(copy, original)`` of tensors that the layout stores twice.
        packed_qkv: a template of tensors that stack the projections of the encoder's attention, in
            the order query, key, value.
        backbone_alone: the layout is that of a pre-trained backbone, not of DAB-DETR.
        raw_coco_ids: a head of 91 classes has COCO's raw ids, as in the published weights.
        unused: regular expressions of tensors that are not needed, with the reason.
        is_own: an earlier version of this project, whose files may be of any model.
        settings: required settings of a model for its tensors to mean the same in this layout, by
            the names of :mod:`dab_detr.checkpoint.settings`.
    """

    name: str
    mark: str
    rows: tuple[tuple[str, str], ...]
    anchors: str | None = None
    copies: tuple[tuple[str, str], ...] = ()
    packed_qkv: str | None = None
    backbone_alone: bool = False
    raw_coco_ids: bool = False
    unused: tuple[tuple[str, str], ...] = field(
        default=((r"num_batches_tracked$", "frozen batch norms do not count batches"),)
    )
    is_own: bool = False
    settings: tuple[tuple[str, Any], ...] = ()


def translate(
    name: str, rows: tuple[tuple[str, str], ...], *, backward: bool = False
) -> str | None:
    """The name in the other layout; None if no row matches.

    Args:
        name: a tensor's name.
        rows: templates ``(theirs, ours)``.
        backward: from ours to theirs.
    """
    for theirs, ours in rows:
        source, target = (ours, theirs) if backward else (theirs, ours)
        match = _pattern(source).fullmatch(name)
        if match:
            return target.format(**match.groupdict())
    return None


_patterns: dict[str, re.Pattern] = {}


def _pattern(template: str) -> re.Pattern:
    if template not in _patterns:
        pattern = re.escape(template)
        for placeholder, group in (("i", r"\d+"), ("j", r"\d+"), ("rest", r".+")):
            pattern = pattern.replace(rf"\{{{placeholder}\}}", f"(?P<{placeholder}>{group})")
        _patterns[template] = re.compile(pattern)
    return _patterns[template]


def prefixed(theirs: str, ours: str, rows: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((theirs + a, ours + b) for a, b in rows.items())


def torchvision_resnet(prefix: str) -> tuple[tuple[str, str], ...]:
    """Rows for torchvision's ResNet (timm's has the same names) and Detectron2's names."""
    rows = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.{rest}": "stem.conv1.norm.{rest}",
    }
    for stage in range(1, 5):
        block, own = f"layer{stage}.{{i}}.", f"res{stage + 1}.{{i}}."
        rows |= {
            block + "conv{j}.weight": own + "conv{j}.weight",
            block + "bn{j}.{rest}": own + "conv{j}.norm.{rest}",
            block + "downsample.0.weight": own + "shortcut.weight",
            block + "downsample.1.{rest}": own + "shortcut.norm.{rest}",
        }
    return prefixed(prefix, "backbone.", rows)
