"""The exception for what a user can put right, and the wording of long lists in its messages."""

from collections.abc import Sequence

_NAMED = 3


class InputError(Exception):
    """A mistake in a file, key or value; the message says which one and what to do."""


def listed(names: Sequence[str]) -> str:
    """The first three names and how many follow."""
    further = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {further} more" if further > 0 else "")
