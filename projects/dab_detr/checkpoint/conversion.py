"""Conversion of DAB-DETR checkpoints from other layouts and back, with a report on all tensors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dab_detr.checkpoint.architecture import architecture, check_resnet, check_transformer
from dab_detr.checkpoint.classes import CLASS_WEIGHT, RAW_COCO_NAMES
from dab_detr.checkpoint.layout import CENTERS, QKV, SIZES, Layout, translate
from dab_detr.checkpoint.layouts import DAB_DETR, LAYOUTS, detect_layout
from dab_detr.errors import InputError, listed


@dataclass
class Conversion:
    """Tensors with this project's names, and a report on the conversion.

    Attributes:
        layout: the source's layout.
        state: tensors by our names.
        used: source tensors that are in ``state``: their name to our name.
        ignored: source tensors that are not: their name to the reason.
        notes: what else was changed.
        class_names: class name of each row of the class head, "" for unused rows; None if not
            known.
    """

    layout: str
    state: dict[str, Tensor]
    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    class_names: Sequence[str] | None = None

    def report(self) -> str:
        """The report as text, a few lines."""
        lines = [
            f"layout {self.layout}: {len(self.used)} tensors used, {len(self.ignored)} not needed"
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            lines.append(f"  not needed, {reason}: {', '.join(names)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def to_dab_detr(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any] | None = None
) -> Conversion:
    """Rename and repack the tensors of a whole DAB-DETR or of a torchvision ResNet.

    Files of this project are returned unchanged, whatever their model; those of version 0.1 get the
    current names.

    Args:
        tensors: by name, in one of :data:`~dab_detr.checkpoint.layouts.LAYOUTS`.
        description: the file's description, if it is this project's own.

    Raises:
        InputError: naming the tensor, if the layout is unknown, or a tensor is unknown, missing or
            of an unexpected shape, or a copy differs from its original.
    """
    layout = detect_layout(tensors, description)
    if layout is None and description is not None:
        # a backbone in this project's names
        layout = DAB_DETR
    if layout is None:
        raise InputError(
            f"No known layout of DAB-DETR ({', '.join(LAYOUTS)}) has tensors such as "
            f"{listed(list(tensors))}."
        )
    if layout is DAB_DETR:
        same = {name: name for name in tensors}
        names = (description or {}).get("class_names")
        return Conversion(layout.name, dict(tensors), same, class_names=names)
    conversion = Conversion(layout.name, {})
    remaining = dict(tensors)
    _drop_unused(layout, remaining, conversion)
    _drop_copies(layout, remaining, conversion)
    if layout.anchors in remaining:
        anchors = remaining.pop(layout.anchors)
        if anchors.dim() != 2 or anchors.shape[1] not in (2, 4):
            raise InputError(
                f"{layout.anchors} is {tuple(anchors.shape)}; (queries, 4) or (queries, 2) is "
                "expected."
            )
        conversion.state[CENTERS] = anchors[:, :2].clone()
        conversion.used[layout.anchors] = CENTERS
        if anchors.shape[1] == 4:
            conversion.state[SIZES] = anchors[:, 2:].clone()
    if layout.packed_qkv:
        _unpack_qkv(layout, remaining, conversion)
    places = {name: translate(name, layout.rows) for name in remaining}
    if unknown := [name for name, ours in places.items() if ours is None]:
        raise InputError(f"The layout {layout.name} does not have {listed(unknown)}.")
    conversion.state |= {ours: remaining[name] for name, ours in places.items()}
    conversion.used |= places
    if layout.is_own:
        conversion.class_names = (description or {}).get("class_names")
        return conversion
    if not layout.backbone_alone:
        _drop_unused_scale(conversion)
        check_transformer(conversion.state, layout.name)
        if layout.raw_coco_ids and len(conversion.state[CLASS_WEIGHT]) == len(RAW_COCO_NAMES):
            conversion.class_names = RAW_COCO_NAMES
    if any(name.startswith("backbone.") for name in conversion.state):
        check_resnet(conversion.state, layout.name)
    else:
        conversion.notes.append("the checkpoint has no backbone")
    return conversion


def require_settings(layout: Layout, settings: Mapping[str, Any]) -> None:
    """Raise InputError, naming it, for a setting that a layout cannot express."""
    for name, needed in layout.settings:
        found = settings.get(name, needed)
        if found != needed:
            raise InputError(f"The layout {layout.name} needs {name}={needed}, not {found}.")


def from_dab_detr(
    state: Mapping[str, Tensor], layout: Layout | str, settings: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """The same tensors with the names and packing of another layout.

    Args:
        state: tensors by this project's names.
        layout: one of :mod:`dab_detr.checkpoint.layouts`, or "official" or "hf".
        settings: known settings that the tensors do not show, see
            :mod:`dab_detr.checkpoint.settings`.

    Raises:
        InputError: naming a missing tensor, or a tensor or setting that the layout cannot express.
    """
    layout = LAYOUTS[layout] if isinstance(layout, str) else layout
    require_settings(layout, settings or {})
    state = dict(state)
    if CENTERS not in state:
        foreign = [name for name in state if name.startswith("transformer.queries.")]
        raise InputError(
            f"The layout {layout.name} only supports anchor boxes as queries: it cannot express "
            f"{listed(foreign)}."
            if foreign
            else f"The layout {layout.name} is for a whole DAB-DETR, not for a backbone."
        )
    check_transformer(state, "dab_detr")
    result: dict[str, Tensor] = {}
    anchors = [state.pop(name) for name in (CENTERS, SIZES) if name in state]
    result[layout.anchors] = torch.cat(anchors, dim=1)
    if layout.packed_qkv:
        result |= _pack_qkv(layout, state)
    for ours, tensor in state.items():
        if ours.startswith("transformer.decoder.box_heads."):
            theirs = _box_head_name(ours, state, layout)
        else:
            theirs = translate(ours, layout.rows, backward=True)
        if theirs is None:
            raise InputError(f"The layout {layout.name} cannot express {ours}.")
        result[theirs] = tensor
    for copy, original in layout.copies:
        for name in list(result):
            twin = translate(name, ((original, copy),))
            if twin is not None:
                result[twin] = result[name].clone()
    return result


def _drop_unused(layout: Layout, remaining: dict, conversion: Conversion) -> None:
    for name in list(remaining):
        for pattern, reason in layout.unused:
            if re.search(pattern, name):
                conversion.ignored[name] = reason
                remaining.pop(name, None)


def _drop_copies(layout: Layout, remaining: dict, conversion: Conversion) -> None:
    for name in list(remaining):
        original = translate(name, layout.copies)
        if original is None:
            continue
        tensor = remaining.pop(name)
        if original not in remaining:
            # a writer that stores shared tensors once may have kept either name
            remaining[original] = tensor
        elif not torch.equal(tensor, remaining[original]):
            raise InputError(
                f"{name} and {original} differ, but in the layout {layout.name} they are copies."
            )
        else:
            conversion.ignored[name] = "stored twice"


def _unpack_qkv(layout: Layout, remaining: dict, conversion: Conversion) -> None:
    for name in list(remaining):
        places = [translate(name, ((layout.packed_qkv, part),)) for part in QKV]
        if None not in places:
            conversion.used[name] = places[0]
            pieces = remaining.pop(name).chunk(3)
            conversion.state |= {place: x.clone() for place, x in zip(places, pieces)}


def _pack_qkv(layout: Layout, remaining: dict) -> dict[str, Tensor]:
    """Removes the three projections of each encoder layer and returns them as one tensor."""
    packed = {}
    for name in list(remaining):
        theirs = translate(name, ((layout.packed_qkv, QKV[0]),), backward=True)
        if theirs is not None:
            parts = [translate(theirs, ((layout.packed_qkv, part),)) for part in QKV]
            packed[theirs] = torch.cat([remaining.pop(part) for part in parts])
    return packed


def _box_head_name(ours: str, state: Mapping[str, Tensor], layout: Layout) -> str | None:
    """Heads per layer have their index in the name, a shared head does not."""
    shared = architecture({**state, CENTERS: torch.empty(1, 2)})["share_box_head"]
    rows = [row for row in layout.rows if "box_heads" in row[1]]
    numbered = [row for row in rows if "{i}" in row[1]]
    if shared:
        return translate(ours, tuple(row for row in rows if row not in numbered), backward=True)
    return translate(ours, tuple(numbered), backward=True)


def _drop_unused_scale(conversion: Conversion) -> None:
    """The published code has the content's scale even with one decoder layer, which ignores it."""
    if architecture(conversion.state)["num_decoder_layers"] > 1:
        return
    for theirs, ours in list(conversion.used.items()):
        if ours.startswith("transformer.queries.position_scale."):
            del conversion.used[theirs], conversion.state[ours]
            conversion.ignored[theirs] = "one layer does not use it"
