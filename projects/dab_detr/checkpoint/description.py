"""What a checkpoint of this project says of itself, beside its tensors.

It stands under the key ``description``; in a ``.safetensors`` file as JSON in the metadata:

- ``format``: "dab_detr";
- ``version``: of the tensors' names, now 2; 1 is that of version 0.1;
- ``class_names``: of the rows of the class head, in their order, "" for a row of no class; left out
  if not known;
- ``settings``: what tensors do not show, see :mod:`dab_detr.checkpoint.settings`.

A reader ignores keys that it does not know, so that adding one needs no new version. The
names of an earlier version are a layout like those of others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dab_detr.errors import InputError

KEY = "description"
_FORMAT, _VERSION = "dab_detr", 2


def describe(
    *, class_names: Sequence[str] | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The description to write, of what is known."""
    description: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    if class_names is not None:
        description["class_names"] = list(class_names)
    if settings:
        description["settings"] = dict(settings)
    return description


def description_of(checkpoint: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """What a checkpoint says of itself, or None if it does not say that it is this project's.

    Raises:
        InputError: if it was written by a later version of this project.
    """
    description = checkpoint.get(KEY)
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        return None
    version = description.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise InputError(
            f"The checkpoint {path} has the format {_FORMAT} {version!r}, of which this "
            f"installation reads versions up to {_VERSION}: install a newer dab_detr."
        )
    return description
