"""Removes prefixes of wrappers from tensor names."""

from collections.abc import Mapping

from torch import Tensor

from dab_detr.checkpoint.layouts import detect_layout
from dab_detr.errors import InputError

# torch.compile, activation checkpointing and FSDP, which may also wrap parts of the model
_ANYWHERE = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def without_wrappers(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Tensors with the model's own names, without the prefixes of wrappers in any nesting.

    Removes what ``torch.compile`` and FSDP insert, ``module.`` of DDP, and ``model.`` of Lightning.
    transformers' own names also start with ``model.``, which is kept.

    Raises:
        InputError: if two tensors would get the same name.
    """
    names = {name: name for name in tensors}
    while True:
        shorter = {name: _without_outermost(now) for name, now in names.items()}
        if shorter == names:
            shorter = _without_model(names)
        if shorter == names:
            break
        names = shorter
    result: dict[str, Tensor] = {}
    for name, short in names.items():
        if short in result:
            raise InputError(f"The checkpoint {path} has {short} twice, once as {name}.")
        result[short] = tensors[name]
    return result


def _without_outermost(name: str) -> str:
    for wrapper in _ANYWHERE:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")


def _without_model(names: dict[str, str]) -> dict[str, str]:
    if detect_layout(names.values()) is not None:
        return names
    shorter = {name: now.removeprefix("model.") for name, now in names.items()}
    everywhere = all(now.startswith("model.") for now in names.values())
    return shorter if everywhere or detect_layout(shorter.values()) is not None else names
