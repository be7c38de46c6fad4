"""The exception for mistakes that a user can correct, and helpers for its messages."""

from collections.abc import Sequence

_NAMED = 3
NO_DETECTRON2 = (
    "dab_detr needs Detectron2, which is not on PyPI: run `make setup` in a checkout of this "
    "project, or see https://github.com/facebookresearch/detectron2."
)


class InputError(Exception):
    """A mistake in a file, key or value; the message names it and says what to do."""


def one_line(error: Exception, *, with_type: bool = True) -> str:
    """The text of an exception without line breaks, at most 300 characters."""
    text = f"{type(error).__name__}: {error}" if with_type else str(error)
    return " ".join(text.split())[:300]


def listed(names: Sequence[str]) -> str:
    """The first three names and the number of the others."""
    further = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {further} more" if further > 0 else "")
