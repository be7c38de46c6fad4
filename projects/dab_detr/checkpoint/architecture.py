"""Settings of a model from the tensors of its checkpoint, and checks for completeness."""

import re
from collections.abc import Mapping

import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from dab_detr.checkpoint.classes import CLASS_WEIGHT
from dab_detr.checkpoint.layout import CENTERS, SIZES
from dab_detr.errors import InputError, listed
from dab_detr.flat_config import model_config


def architecture(state: Mapping[str, Tensor]) -> dict[str, int | bool]:
    """Settings of a model with anchor boxes, from the names and shapes of its tensors.

    By their names in :data:`dab_detr.flat_config.PLACES`, and ``in_channels`` of the projection.
    Number of heads, temperatures and ``update_anchors`` cannot be seen in the tensors.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise InputError(f"The checkpoint lacks {name}.")
        return state[name].shape

    def count(prefix: str) -> int:
        found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state]
        return 1 + max((int(match.group(1)) for match in found if match), default=-1)

    d_model, in_channels = shape("input_proj.weight")[:2]
    patterns = state.get("transformer.queries.patterns.weight")
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
        "modulate_hw_attention": any("queries.reference_size." in name for name in state),
        "share_box_head": count("transformer.decoder.box_heads") <= 1,
    }


def check_transformer(state: Mapping[str, Tensor], layout: str) -> None:
    """Compare the tensors with the model that their shapes describe.

    Args:
        layout: of the checkpoint, for the message.

    Raises:
        InputError: naming tensors that are missing, unknown or of another shape.
    """
    arguments = architecture(state)
    in_channels = arguments.pop("in_channels")
    model = model_config(**arguments, num_heads=1)
    with torch.device("meta"):
        parts = {
            "input_proj": nn.Conv2d(in_channels, arguments["d_model"], kernel_size=1),
            "transformer": instantiate(model.transformer),
        }
    expected = {
        f"{part}.{name}": tensor.shape
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    missing = [name for name in expected if name not in state]
    if missing:
        raise InputError(f"The checkpoint ({layout}) lacks {listed(missing)}.")
    own = [name for name in state if name.split(".")[0] in parts]
    unknown = [name for name in own if name not in expected]
    if unknown:
        raise InputError(f"A DAB-DETR of these sizes does not have {listed(unknown)}.")
    for name in own:
        if state[name].shape != expected[name]:
            raise InputError(
                f"{name} is {tuple(state[name].shape)} in the checkpoint; "
                f"{tuple(expected[name])} is expected."
            )


RESNET_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_NORM = ("weight", "bias", "running_mean", "running_var")


def check_resnet(state: Mapping[str, Tensor], layout: str) -> None:
    """Check that no block of the ResNet lacks a tensor, nor a full-size ResNet a block.

    Args:
        layout: of the checkpoint, for the message.

    Raises:
        InputError: naming the missing tensors.
    """
    stages: dict[int, dict[int, set[str]]] = {}
    for name in state:
        match = re.match(r"backbone\.res(\d)\.(\d+)\.(\w+)\.", name)
        if match:
            blocks = stages.setdefault(int(match.group(1)), {})
            blocks.setdefault(int(match.group(2)), set()).add(match.group(3))
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
        raise InputError(f"The checkpoint ({layout}) lacks {listed(missing)}.")
    depths = tuple(len(stages[stage]) for stage in sorted(stages))
    if state.get("backbone.res5.0.conv3.weight", torch.empty(0)).shape[0] == 2048:
        if depths not in RESNET_DEPTHS:
            raise InputError(
                f"The checkpoint's ResNet has {depths} blocks in its stages; "
                f"{' or '.join(map(str, RESNET_DEPTHS))} is expected."
            )
