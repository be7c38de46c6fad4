"""Modules and config keys of version 0.1 that have another name now."""

from collections.abc import Iterable
from typing import Any

from dab_detr.errors import InputError

# former module -> current module of its classes and functions
MOVED_MODULES = {
    "dab_detr.engine.coco_evaluator": "dab_detr.evaluation.coco_evaluator",
    "dab_detr.engine.voc_evaluator": "dab_detr.evaluation.voc_evaluator",
}

# former key -> current key; configs/models/dab_detr_r50.py shows which other keys refer to it
MOVED_KEYS = {
    "model.d_model": "model.transformer.d_model",
    "model.num_heads": "model.transformer.encoder.num_heads",
    "model.num_encoder_layers": "model.transformer.encoder.num_layers",
    "model.num_decoder_layers": "model.transformer.decoder.num_layers",
    "model.ffn_dim": "model.transformer.encoder.ffn_dim",
    "model.dropout": "model.transformer.encoder.dropout",
    "model.num_queries": "model.transformer.queries.num_queries",
    "model.num_patterns": "model.transformer.queries.num_patterns",
    "model.query_dim": "model.transformer.queries.query_dim",
    "model.anchor_init": "model.transformer.queries.anchor_init",
    "model.freeze_anchor_centers": "model.transformer.queries.freeze_anchor_centers",
    "model.modulate_hw_attention": "model.transformer.queries.modulate_hw_attention",
    "model.update_anchors": "model.transformer.queries.update_anchors",
    "model.share_box_head": "model.transformer.decoder.share_box_head",
    "model.key_temperature": "model.transformer.key_temperature",
    "model.query_temperature": "model.transformer.queries.temperature",
}


def refuse_moved_keys(keys: Iterable[str], where: str) -> None:
    """Refuse keys of version 0.1.

    Args:
        keys: keys with their full path. where: where they are, for the message.

    Raises:
        InputError: with the current names.
    """
    moved = [f"{key} is {MOVED_KEYS[key]} now" for key in keys if key in MOVED_KEYS]
    if moved:
        raise InputError(f"{where} has keys of version 0.1: {', '.join(moved)}.")


def current_name(name: Any) -> Any:
    """The current name of a class or function; a current name is returned unchanged."""
    if isinstance(name, str):
        module, dot, member = name.rpartition(".")
        return f"{MOVED_MODULES.get(module, module)}{dot}{member}"
    return name


def use_current_names(content: Any) -> None:
    """Replace former names by current ones in the ``_target_`` keys of a config.

    Args:
        content: nested dicts and lists; changed in place.
    """
    if isinstance(content, dict):
        if "_target_" in content:
            content["_target_"] = current_name(content["_target_"])
        for value in content.values():
            use_current_names(value)
    elif isinstance(content, list | tuple):
        for value in content:
            use_current_names(value)
