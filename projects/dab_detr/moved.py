"""What version 0.1 called otherwise: modules that its config files name, keys of its configs."""

from collections.abc import Iterable
from typing import Any

from dab_detr.errors import InputError

# former module -> the one that has its classes and functions now
MOVED_MODULES = {
    "dab_detr.engine.coco_evaluator": "dab_detr.evaluation.coco_evaluator",
    "dab_detr.engine.voc_evaluator": "dab_detr.evaluation.voc_evaluator",
}

# former key -> the present one; that others follow it is said in configs/models/dab_detr_r50.py
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
    """Refuse keys that have another name now.

    Args:
        keys: with their paths. where: what has them, for the message.

    Raises:
        InputError: with the present names.
    """
    moved = [f"{key} is {MOVED_KEYS[key]} now" for key in keys if key in MOVED_KEYS]
    if moved:
        raise InputError(f"{where} has keys of version 0.1: {', '.join(moved)}.")


def current_name(name: Any) -> Any:
    """The name that a class or function has now; what has not moved is returned as it is."""
    if isinstance(name, str):
        module, dot, member = name.rpartition(".")
        return f"{MOVED_MODULES.get(module, module)}{dot}{member}"
    return name


def use_current_names(content: Any) -> None:
    """Replace the former names of what has moved by those of now, in a config's ``_target_``.

    Args:
        content: of dicts and lists; is changed.
    """
    if isinstance(content, dict):
        if "_target_" in content:
            content["_target_"] = current_name(content["_target_"])
        for value in content.values():
            use_current_names(value)
    elif isinstance(content, list | tuple):
        for value in content:
            use_current_names(value)
