"""What wrappers around a model put before the names of its tensors."""

from collections.abc import Mapping

from torch import Tensor

from dab_detr.checkpoint.layouts import detect_layout
from dab_detr.errors import InputError

# torch.compile, activation checkpointing and FSDP, which may wrap a part of the model, too
_ANYWHERE = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def without_wrappers(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Names as the model itself has them, without those of wrappers in any nesting.

    Takes away what ``torch.compile`` and FSDP insert, the ``module.`` of DDP, and the ``model.`` of
    Lightning. transformers' own names begin with ``model.`` as well, which stays.

    Raises:
        InputError: if two tensors would get one name.
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
