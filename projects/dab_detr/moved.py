"""Where classes are that config files of earlier trainings name by their former modules."""

from typing import Any

# former module -> the one that has its classes and functions now
MOVED_MODULES = {
    "dab_detr.engine.coco_evaluator": "dab_detr.evaluation.coco_evaluator",
    "dab_detr.engine.voc_evaluator": "dab_detr.evaluation.voc_evaluator",
}


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
