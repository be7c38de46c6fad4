"""The description that a checkpoint of this project has beside its tensors.

It is under the key ``description``; in a ``.safetensors`` file as JSON in the metadata:

- ``format``: "dab_detr";
- ``version``: of the tensors' names, currently 2; version 0.1 wrote 1;
- ``class_names``: class name of each row of the class head, "" for unused rows; left out if not
  known;
- ``settings``: settings that the tensors do not show, see :mod:`dab_detr.checkpoint.settings`.

Readers ignore unknown keys, so that a new key needs no new version. The tensor names of an earlier
version are a layout of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dab_detr.errors import InputError

KEY = "description"
_FORMAT, _VERSION = "dab_detr", 2


def describe(
    *, class_names: Sequence[str] | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The description to write; what is not known is left out."""
    description: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    if class_names is not None:
        description["class_names"] = list(class_names)
    if settings:
        description["settings"] = dict(settings)
    return description


def description_of(checkpoint: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """The description of a checkpoint; None if it is not one of this project's.

    Raises:
        InputError: if it was written by a later version of this project.
    """
    description = checkpoint.get(KEY)
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        return None
    version = description.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise InputError(
            f"The checkpoint {path} has version {version!r} of the format {_FORMAT}; this "
            f"installation reads versions up to {_VERSION}: install a newer dab_detr."
        )
    return description
