"""Which detections are returned: thresholds, classes, number."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from detectron2.structures import Instances

from dab_detr.errors import InputError, listed

SCORE_THRESHOLD = 0.5


class Selection:
    """Keeps the detections that are asked for.

    Args:
        class_names: of all classes of the model.
        score_threshold: the lowest score, 0 to 1; or one per class, as a list, or as a dictionary
            by name or index, in which missing classes have the usual one.
        top_k: how many detections of an image are kept, the best ones; None: all.
        classes: names or indices of the classes to keep; None: all.

    Raises:
        InputError: for another value.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        score_threshold: float | Sequence[float] | Mapping[str | int, float] = SCORE_THRESHOLD,
        top_k: int | None = None,
        classes: Iterable[str | int] | str | int | None = None,
    ):
        self._class_names = class_names
        if top_k is not None and (not _is(top_k, Integral) or top_k < 1):
            raise InputError(f"top_k is {top_k!r}; a number of at least 1, or None, is needed.")
        self._top_k = top_k
        # an infinite threshold excludes a class
        thresholds = self._thresholds(score_threshold)
        if classes is not None:
            names = [classes] if isinstance(classes, str | Integral) else classes
            wanted = {index for name in names for index in self._indices(name, "classes")}
            thresholds = [x if i in wanted else torch.inf for i, x in enumerate(thresholds)]
        self._lowest = torch.tensor(thresholds)

    def __call__(self, found: Instances) -> Instances:
        """The selected detections, best first.

        Args:
            found: on the CPU, best first, with ``scores`` and ``pred_classes``.
        """
        return found[found.scores >= self._lowest[found.pred_classes]][: self._top_k]

    def _thresholds(self, given: Any) -> list[float]:
        count = len(self._class_names)
        if isinstance(given, Mapping):
            thresholds = [SCORE_THRESHOLD] * count
            for name, value in given.items():
                for index in self._indices(name, "score_threshold"):
                    thresholds[index] = value
        elif isinstance(given, Iterable) and not isinstance(given, str):
            thresholds = list(given)
            if len(thresholds) != count:
                raise InputError(
                    f"score_threshold has {len(thresholds)} numbers, but the model has {count} "
                    "classes."
                )
        else:
            thresholds = [given] * count
        for value in thresholds:
            if not _is(value, Real) or not 0 <= value <= 1:
                raise InputError(
                    f"score_threshold is or has {value!r}; numbers from 0 to 1 are needed."
                )
        return [float(value) for value in thresholds]

    def _indices(self, name: Any, argument: str) -> list[int]:
        """Of a class; several if several rows of the class head have the same name."""
        count = len(self._class_names)
        if _is(name, Integral) and 0 <= name < count:
            return [int(name)]
        indices = [i for i, known in enumerate(self._class_names) if known == name]
        if not indices:
            close = difflib.get_close_matches(str(name), self._class_names, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"it has {listed(self._class_names)}."
            )
            raise InputError(f"{argument} has {name!r}, which is no class of the model; {hint}")
        return indices


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
