"""From other layouts of a DAB-DETR to this project's and back, with an account of every tensor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dab_detr.checkpoint.classes import CLASS_WEIGHT, RAW_COCO_NAMES
from dab_detr.checkpoint.layout import Layout, translate
from dab_detr.checkpoint.layouts import DAB_DETR, LAYOUTS, recognise
from dab_detr.errors import InputError, listed
from dab_detr.modeling.transformer import DABTransformer

CENTERS, SIZES = "transformer.anchors.center_logits", "transformer.anchors.size_logits"


@dataclass
class Conversion:
    """Tensors in this project's names, and what became of the others.

    Attributes:
        layout: where they come from.
        state: tensors by our name.
        used: for each tensor of the source that is in ``state``, its name there.
        ignored: for each that is not, the reason.
        notes: what was changed on the way.
        class_names: of the class head's rows, "" for one of no class; None if not known.
    """

    layout: str
    state: dict[str, Tensor]
    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    class_names: Sequence[str] | None = None

    def report(self) -> str:
        """A few lines for a person."""
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

    This project's own files stay as they are, whatever model they are of.

    Args:
        tensors: by name, in one of :data:`~dab_detr.checkpoint.layouts.LAYOUTS`.
        description: what the file says of itself, if it is this project's own.

    Raises:
        InputError: naming the tensor, if the layout is unknown, or a tensor is unknown, missing or
            of an unexpected shape, or a copy differs from its original.
    """
    layout = recognise(tensors) if description is None else DAB_DETR
    if layout is None:
        raise InputError(
            f"No known layout of a DAB-DETR ({', '.join(LAYOUTS)}) has tensors such as "
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
    if layout.separate_qkv:
        _pack_qkv(layout, remaining, conversion)
    places = {name: translate(name, layout.rows) for name in remaining}
    if unknown := [name for name, ours in places.items() if ours is None]:
        raise InputError(f"The layout {layout.name} has no {listed(unknown)}.")
    conversion.state |= {ours: remaining[name] for name, ours in places.items()}
    conversion.used |= places
    if not layout.backbone_alone:
        _check_transformer(conversion)
        if layout.raw_coco_ids and len(conversion.state[CLASS_WEIGHT]) == len(RAW_COCO_NAMES):
            conversion.class_names = RAW_COCO_NAMES
    _check_resnet(conversion)
    return conversion


def from_dab_detr(state: Mapping[str, Tensor], layout: Layout | str) -> dict[str, Tensor]:
    """The same tensors in the names and packing of another layout.

    Args:
        state: in this project's names.
        layout: one of :mod:`dab_detr.checkpoint.layouts`, or "official" or "hf".

    Raises:
        InputError: naming a tensor that is missing, or that the layout has no place for.
    """
    layout = LAYOUTS[layout] if isinstance(layout, str) else layout
    state = dict(state)
    if CENTERS not in state:
        raise InputError(f"The layout {layout.name} is of a whole DAB-DETR, not of a backbone.")
    _check_transformer(Conversion("dab_detr", state))
    result: dict[str, Tensor] = {}
    anchors = [state.pop(name) for name in (CENTERS, SIZES) if name in state]
    result[layout.anchors] = torch.cat(anchors, dim=1)
    for ours, tensor in state.items():
        packed = re.fullmatch(
            r"transformer\.encoder\.layers\.(?P<i>\d+)\.self_attention\.in_proj\.(?P<rest>.+)", ours
        )
        if packed and layout.separate_qkv:
            for part, piece in zip("qkv", tensor.chunk(3)):
                result[layout.separate_qkv.format(part=part, **packed.groupdict())] = piece.clone()
            continue
        if ours.startswith("transformer.decoder.box_heads."):
            theirs = _box_head_name(ours, state, layout)
        else:
            theirs = translate(ours, layout.rows, backward=True)
        if theirs is None:
            raise InputError(f"The layout {layout.name} has no place for {ours}.")
        result[theirs] = tensor
    for copy, original in layout.copies:
        for name in list(result):
            twin = translate(name, ((original, copy),))
            if twin is not None:
                result[twin] = result[name].clone()
    return result


def architecture(state: Mapping[str, Tensor]) -> dict[str, int | bool]:
    """Arguments of :class:`DABTransformer` that the tensors' names and shapes tell.

    Number of heads, temperatures and ``update_anchors`` leave no trace in them.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise InputError(f"The checkpoint lacks {name}.")
        return state[name].shape

    def count(prefix: str) -> int:
        found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state]
        return 1 + max((int(match.group(1)) for match in found if match), default=-1)

    d_model, in_channels = shape("transformer.input_proj.weight")[:2]
    patterns = state.get("transformer.anchors.patterns.weight")
    return {
        "in_channels": in_channels,
        "d_model": d_model,
        "num_classes": shape(CLASS_WEIGHT)[0],
        "num_encoder_layers": count("transformer.encoder.layers"),
        "num_decoder_layers": count("transformer.decoder.layers"),
        "ffn_dim": shape("transformer.decoder.layers.0.feed_forward.linear1.weight")[0],
        "num_queries": shape(CENTERS)[0],
        "query_dim": 4 if SIZES in state else 2,
        "num_patterns": 0 if patterns is None else len(patterns),
        "modulate_hw_attention": any("decoder.reference_size." in name for name in state),
        "share_box_head": count("transformer.decoder.box_heads") <= 1,
    }


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
            raise InputError(f"{name} and {original} differ; {layout.name} holds one thing twice.")
        else:
            conversion.ignored[name] = "stored twice"


def _pack_qkv(layout: Layout, remaining: dict, conversion: Conversion) -> None:
    """Three projections of the encoder into one, in the order q, k, v."""
    first = layout.separate_qkv.replace("{part}", "q")
    for name in list(remaining):
        if translate(name, ((first, "{i}"),)) is None:
            continue
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        missing = [part for part in parts if part not in remaining]
        if missing:
            raise InputError(f"The checkpoint lacks {listed(missing)}.")
        ours = translate(
            name, ((first, "transformer.encoder.layers.{i}.self_attention.in_proj.{rest}"),)
        )
        conversion.state[ours] = torch.cat([remaining.pop(part) for part in parts])
        conversion.used |= dict.fromkeys(parts, ours)


def _box_head_name(ours: str, state: Mapping[str, Tensor], layout: Layout) -> str | None:
    """Per-layer heads have their number in the name, a shared one has not."""
    shared = architecture({**state, CENTERS: torch.empty(1, 2)})["share_box_head"]
    rows = [row for row in layout.rows if "box_heads" in row[1]]
    numbered = [row for row in rows if "{i}" in row[1]]
    if shared:
        return translate(ours, tuple(row for row in rows if row not in numbered), backward=True)
    return translate(ours, tuple(numbered), backward=True)


def _check_transformer(conversion: Conversion) -> None:
    """Compare with the model that the shapes speak of: nothing missing, nothing too much."""
    state = conversion.state
    arguments = architecture(state)
    if arguments["num_decoder_layers"] == 1:
        _discard(conversion, "transformer.decoder.position_scale.", "one layer does not use it")
    with torch.device("meta"):
        model = DABTransformer(**arguments, num_heads=1)
    expected = {f"transformer.{name}": p.shape for name, p in model.state_dict().items()}
    missing = [name for name in expected if name not in state]
    if missing:
        raise InputError(f"The checkpoint ({conversion.layout}) lacks {listed(missing)}.")
    own = [name for name in state if name.startswith("transformer.")]
    unknown = [name for name in own if name not in expected]
    if unknown:
        raise InputError(f"A DAB-DETR of these sizes has no {listed(unknown)}.")
    for name in own:
        if state[name].shape != expected[name]:
            raise InputError(
                f"{name} is {tuple(state[name].shape)} in the checkpoint; "
                f"{tuple(expected[name])} is expected."
            )


def _discard(conversion: Conversion, prefix: str, reason: str) -> None:
    for theirs, ours in list(conversion.used.items()):
        if ours.startswith(prefix):
            del conversion.used[theirs], conversion.state[ours]
            conversion.ignored[theirs] = reason


RESNET_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_NORM = ("weight", "bias", "running_mean", "running_var")


def _check_resnet(conversion: Conversion) -> None:
    """See that no block of the ResNet lacks a part, nor a full-size ResNet a block."""
    state = conversion.state
    stages: dict[int, dict[int, set[str]]] = {}
    for name in state:
        match = re.match(r"backbone\.res(\d)\.(\d+)\.(\w+)\.", name)
        if match:
            blocks = stages.setdefault(int(match.group(1)), {})
            blocks.setdefault(int(match.group(2)), set()).add(match.group(3))
    if not any(name.startswith("backbone.") for name in state):
        conversion.notes.append("the checkpoint holds no backbone")
        return
    convs = ["backbone.stem.conv1"]
    for stage in range(2, max(stages, default=5) + 1):
        blocks = stages.get(stage, {})
        for block in range(max(blocks, default=0) + 1):
            parts = blocks.get(block, set()) | {"conv1", "conv2"}
            if block == 0 and stage > 2:
                parts |= {"shortcut"}
            convs += [f"backbone.res{stage}.{block}.{part}" for part in sorted(parts)]
    expected = [f"{conv}.{x}" for conv in convs for x in ("weight", *(f"norm.{n}" for n in _NORM))]
    missing = [name for name in expected if name not in state]
    if missing:
        raise InputError(f"The checkpoint ({conversion.layout}) lacks {listed(missing)}.")
    depths = tuple(len(stages[stage]) for stage in sorted(stages))
    if state.get("backbone.res5.0.conv3.weight", torch.empty(0)).shape[0] == 2048:
        if depths not in RESNET_DEPTHS:
            raise InputError(
                f"The checkpoint's ResNet has {depths} blocks in its stages; "
                f"{' or '.join(map(str, RESNET_DEPTHS))} is expected."
            )
