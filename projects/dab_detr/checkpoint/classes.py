"""Fits the class head of a checkpoint to the classes of a model, by their names."""

import math
from collections.abc import Mapping, Sequence

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from dab_detr.errors import listed

CLASS_WEIGHT, CLASS_BIAS = (f"transformer.decoder.class_head.{x}" for x in ("weight", "bias"))
# Rows of the head with 91 rows (raw COCO ids) for the 80 classes, in Detectron2's order.
COCO_ROWS = (
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70,
    *range(72, 83), *range(84, 91),
)  # fmt: skip
COCO_NAMES = tuple(category["name"] for category in COCO_CATEGORIES if category["isthing"])
RAW_COCO_NAMES = tuple(
    COCO_NAMES[COCO_ROWS.index(row)] if row in COCO_ROWS else "" for row in range(91)
)
_UNUSED_CLASS_BIAS = -20.0


def fit_classes(
    state: dict[str, Tensor],
    num_classes: int,
    *,
    present: Sequence[str] | None = None,
    wanted: Sequence[str] | None = None,
    may_restart: bool = True,
) -> str | None:
    """Replace the rows of a class head by those of a model's classes, in place.

    If the checkpoint's class names are known and include all wanted ones, their rows are selected
    by name. Otherwise a head with the wanted number of classes is kept, and any other is
    re-initialised, as in a new model.

    Args:
        state: with :data:`CLASS_WEIGHT` and :data:`CLASS_BIAS`.
        num_classes: number of classes of the model.
        present: class name of each row in the checkpoint, "" for unused rows; None: not known.
        wanted: class name of each of the model's ``num_classes`` rows; None: not known, which means
            COCO's if the checkpoint has COCO's and 80 or 91 (raw COCO ids) are wanted.
        may_restart: whether the head may be re-initialised.

    Returns:
        A note on what was done; None if the head fits as it is.

    Raises:
        ValueError: if the head would have to be re-initialised, but ``may_restart`` is False.
    """
    weight, bias = state[CLASS_WEIGHT], state[CLASS_BIAS]
    if present is not None and len(present) != len(weight):
        present = None
    if wanted is not None and len(wanted) != num_classes:
        wanted = None
    if wanted is None:
        wanted = coco_names(num_classes, present)
    if present is not None and wanted is not None and list(present) == list(wanted):
        return None
    rows = _rows_by_name(present, wanted)
    if rows is not None:
        known = torch.tensor([row >= 0 for row in rows])
        new_weight = torch.zeros(num_classes, weight.shape[1]).to(weight)
        new_bias = torch.full((num_classes,), _UNUSED_CLASS_BIAS).to(bias)
        taken = torch.tensor([row for row in rows if row >= 0])
        new_weight[known], new_bias[known] = weight[taken], bias[taken]
        note = _note_by_name(present, wanted)
    elif num_classes == len(weight):
        if present is None or wanted is None:
            return None
        return (
            f"class head: all rows kept, although the checkpoint's classes are {listed(present)} "
            f"and the model's {listed(wanted)}"
        )
    elif not may_restart:
        raise ValueError(_mismatch(len(weight), num_classes, present, wanted))
    else:
        new_weight = torch.empty(num_classes, weight.shape[1]).to(weight)
        bound = 1 / math.sqrt(weight.shape[1])
        torch.nn.init.uniform_(new_weight, -bound, bound)
        # every class starts with probability 0.01, as in a new model
        new_bias = torch.full((num_classes,), -math.log(99)).to(bias)
        note = f"class head: re-initialised, {len(weight)} classes in the file, {num_classes} in "
        note += f"the model{_coco_hint(len(weight), num_classes, present)}"
    state[CLASS_WEIGHT], state[CLASS_BIAS] = new_weight, new_bias
    return note


def coco_names(num_classes: int, present: Sequence[str] | None) -> tuple[str, ...] | None:
    """COCO's class names, if the checkpoint has COCO's and 80 or 91 classes are wanted."""
    if present is None or tuple(present) not in (COCO_NAMES, RAW_COCO_NAMES):
        return None
    return {80: COCO_NAMES, 91: RAW_COCO_NAMES}.get(num_classes)


def coco_rows(state: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    """COCO's names for the rows of a class head that is known to be for COCO: 80, or 91 (raw ids);
    None for another number."""
    return {80: COCO_NAMES, 91: RAW_COCO_NAMES}.get(len(state.get(CLASS_WEIGHT, ())))


def names_of_rows(num_classes: int, present: Sequence[str] | None) -> list[str] | None:
    """Class names of the rows that :func:`fit_classes` leaves, if it is not told any; None: not
    known.

    Args:
        num_classes: of the model. present: as for :func:`fit_classes`.
    """
    if present is None or len(present) != num_classes:
        present = coco_names(num_classes, present)
    return None if present is None else list(present)


def _rows_by_name(present: Sequence[str] | None, wanted: Sequence[str] | None) -> list[int] | None:
    """The row of each wanted class, -1 for unused rows; None if names do not identify them."""
    if present is None or wanted is None:
        return None
    for names in (present, wanted):
        named = [name for name in names if name]
        if len(set(named)) != len(named):
            return None
    rows = {name: row for row, name in enumerate(present) if name}
    if not all(name in rows for name in wanted if name):
        return None
    return [rows.get(name, -1) for name in wanted]


def _note_by_name(present: Sequence[str], wanted: Sequence[str]) -> str:
    pair = tuple(present), tuple(wanted)
    if pair == (RAW_COCO_NAMES, COCO_NAMES):
        return "class head: 91 rows (raw COCO ids) converted to Detectron2's 80 classes"
    if pair == (COCO_NAMES, RAW_COCO_NAMES):
        return "class head: 80 classes converted to 91 rows (raw COCO ids); unused rows never score"
    return (
        f"class head: the rows of {listed(wanted)} were selected by name from the checkpoint's "
        f"{len(present)}"
    )


def _mismatch(
    count: int, num_classes: int, present: Sequence[str] | None, wanted: Sequence[str] | None
) -> str:
    sentence = f"it has {count} classes, the model {num_classes}"
    if present is not None and wanted is not None:
        lacking = [name for name in wanted if name and name not in present]
        sentence += f"; it lacks {listed(lacking)}" if lacking else ""
    return sentence + _coco_hint(count, num_classes, present)


def _coco_hint(count: int, num_classes: int, present: Sequence[str] | None) -> str:
    """A hint for a file that does not say whether its classes are COCO's."""
    if present is not None or (count, num_classes) != (91, 80):
        return ""
    return (
        "; if the 91 are COCO's raw ids, convert the file with tools/convert_checkpoint.py "
        "--num-classes 80 --coco-classes first"
    )
