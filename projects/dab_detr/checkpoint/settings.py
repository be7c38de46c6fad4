"""Settings of a model that its tensors do not show, from a file or a model.

By name: ``dilation`` (of the backbone's last stage, DC5), ``num_heads``, ``key_temperature``,
``queries`` (the formulation), and for anchor boxes ``query_temperature`` and ``update_anchors``.
Unknown settings are left out.
"""

import logging
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from torch import nn

from dab_detr.modeling.queries.anchor_boxes import AnchorBoxQueries
from dab_detr.modeling.transformer import DABTransformer

logger = logging.getLogger(__name__)

# their names in the published code's command line and in transformers' config.json; the latter
# leaves out default values
_OFFICIAL = {"dilation": "dilation", "num_heads": "nheads", "key_temperature": "pe_temperatureH"}
_HF = {
    "dilation": ("dilation", False),
    "num_heads": ("decoder_attention_heads", 8),
    "key_temperature": ("temperature_height", 20),
}


def settings_of_model(model: nn.Module) -> dict[str, Any]:
    """Settings of a :class:`~dab_detr.modeling.meta_arch.DABDETR`; fewer for other models."""
    settings: dict[str, Any] = {}
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        settings["dilation"] = any(
            isinstance(child, nn.Conv2d) and max(child.dilation) > 1 for child in backbone.modules()
        )
    transformer = getattr(model, "transformer", None)
    if isinstance(transformer, DABTransformer):
        queries = transformer.queries
        settings |= {
            "num_heads": transformer.decoder.layers[0].self_attention.num_heads,
            "key_temperature": transformer.key_encoding.temperature,
            "queries": type(queries).__name__,
        }
        if isinstance(queries, AnchorBoxQueries):
            settings |= {
                "query_temperature": queries.temperature,
                "update_anchors": queries.update_anchors,
            }
    return settings


def settings_of_file(
    checkpoint: Mapping[str, Any], description: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Settings of a checkpoint.

    Args:
        checkpoint: result of :func:`~dab_detr.checkpoint.reading.read_checkpoint`, for a file of
            this project, of the published code (which stores its command line), or a folder of
            transformers (with its ``config.json``).
        description: the checkpoint's description, if it is this project's.
    """
    if description is not None:
        return dict(description.get("settings", {}))
    if "config" in checkpoint:
        config = checkpoint["config"]
        settings = {ours: config.get(theirs, usual) for ours, (theirs, usual) in _HF.items()}
        # transformers 5 expresses dilation differently
        output_stride = (config.get("backbone_config") or {}).get("output_stride")
        return settings | ({"dilation": True} if output_stride == 16 else {})
    if isinstance(checkpoint.get("args"), Namespace):
        arguments = vars(checkpoint["args"])
        return {k: arguments[theirs] for k, theirs in _OFFICIAL.items() if theirs in arguments}
    return {}


def warn_of_other_settings(model: nn.Module, found: Mapping[str, Any], path: str) -> None:
    """Warn of settings of the model that differ from those of the checkpoint ``path``."""
    for name, wanted in settings_of_model(model).items():
        if name in found and found[name] != wanted:
            logger.warning(
                f"The checkpoint {path} was trained with {name}={found[name]}, but the model has "
                f"{wanted}: its outputs will differ."
            )
