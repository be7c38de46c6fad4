"""How the same weights are named by this project and by others, as tables that work both ways.

In a row ``(theirs, ours)`` of templates ``{i}`` and ``{j}`` stand for numbers and ``{rest}``
for the end of the name. Both sides of a row use the same placeholders.
"""

import re
from dataclasses import dataclass, field
from typing import Any

ENCODER = "transformer.encoder.layers.{i}."
DECODER = "transformer.decoder.layers.{i}."
# the anchors of a formulation that other layouts know, too
CENTERS, SIZES = "transformer.queries.center_logits", "transformer.queries.size_logits"
# of which the published code leaves no choice
PUBLISHED_SETTINGS = (
    ("queries", "AnchorBoxQueries"),
    ("query_temperature", 10000),
    ("update_anchors", True),
)
# the projections of the encoder's attention, in the order in which others pack them
QKV = tuple(ENCODER + f"self_attention.{part}_proj.{{rest}}" for part in ("query", "key", "value"))
QUERY_ENCODING = "cross_attention.query_encoding_proj.{rest}"


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors of a DAB-DETR.

    Attributes:
        name: as given on the command line.
        mark: a regular expression that some tensor name of this layout, and of no other, matches.
        rows: see above; the first row that matches a name counts.
        anchors: the tensor (Q, query_dim) that holds centres and sizes together, if one does.
        copies: templates ``(copy, original)`` of tensors that the layout stores twice.
        packed_qkv: a template of tensors that hold the projections of the encoder's attention one
            below the other, in the order query, key, value.
        backbone_alone: it names a pre-trained backbone, no DAB-DETR.
        raw_coco_ids: 91 classes in it are COCO's, by raw ids, as in the published weights.
        unused: regular expressions of tensors that carry nothing, with the reason.
        is_own: an earlier one of this project, whose files may be of any model.
        settings: what a model has to be like for its tensors to mean the same in this layout, by
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
    """The name in the other layout, or None if no row matches.

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
    """Rows for torchvision's ResNet (timm's has the same names) in Detectron2's."""
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
