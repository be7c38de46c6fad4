"""Checks that the tensors of a file fit a model."""

import logging
import re
from collections.abc import Mapping, Sequence

from detectron2.modeling import ResNet
from torch import Tensor, nn

from dab_detr.errors import InputError, listed

logger = logging.getLogger(__name__)


def require_fit(
    state: Mapping[str, Tensor], model: nn.Module, path: str, *, complete: bool
) -> None:
    """Refuse a file with missing tensors, or with tensors that the model does not have.

    Detectron2's own check ignores missing statistics of frozen batch norms.

    Args:
        state: the file's tensors, by the model's names.
        path: the file, for the messages.
        complete: the file has to fill the whole model. Otherwise the backbone is enough; if it is
            a ResNet, it has to be complete.

    Raises:
        InputError: naming the tensors.
    """
    expected = model.state_dict()
    filled = [name for name in expected if name in state]
    # the number of batches that a norm has seen is not used after the training
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unused = [name for name in state if name not in expected]
    if not filled:
        raise InputError(
            f"The checkpoint {path} has no tensor of the model; it has {listed(sorted(state))}."
        )
    whole = complete or not all(name.startswith("backbone.") for name in filled)
    needed = missing if whole else [name for name in missing if _in_resnet(name, model)]
    if needed:
        raise InputError(
            f"The checkpoint {path} does not fit the model: it lacks {listed(needed)}."
        )
    surplus = unused if whole else [k for k in unused if re.search(r"res[2-5]\.\d+\.", k)]
    if surplus:
        raise InputError(
            f"The checkpoint {path} does not fit the model, which does not have {listed(surplus)}."
        )
    fresh = [name for name in missing if name.startswith("backbone.")]
    if fresh:
        # necks, such as an FPN, are not part of pre-trained weights
        logger.warning(f"Not in the checkpoint, start from random weights: {listed(fresh)}.")
    if unused:
        logger.warning(f"Not used from the checkpoint: {listed(unused)}.")


def require_shapes(incorrect: Sequence[tuple], path: str) -> None:
    """Refuse tensors of another shape than the model's.

    Args:
        incorrect: name, shape in the file and in the model of each. path: the file, for the
            message.

    Raises:
        InputError: naming the first one.
    """
    if incorrect:
        name, found, wanted = incorrect[0]
        others = f" (and {len(incorrect) - 1} more)" if len(incorrect) > 1 else ""
        raise InputError(
            f"The checkpoint {path} does not fit the model: {name} is {tuple(found)} in the file "
            f"and {tuple(wanted)} in the model{others}."
        )


def has_resnet(model: nn.Module) -> bool:
    """Whether the model contains Detectron2's ResNet."""
    return any(isinstance(module, ResNet) for module in model.modules())


def _in_resnet(name: str, model: nn.Module) -> bool:
    """Whether a tensor belongs to a ResNet, which pre-trained weights fill entirely."""
    return any(
        isinstance(module, ResNet) and name.startswith(f"{prefix}.")
        for prefix, module in model.named_modules()
    )
