"""The description that a checkpoint of this project has beside its tensors.

It is under the key ``description``; in a ``.safetensors`` file as JSON in the metadata:

- ``format``: "dab_detr";
- ``version``: of the tensors' names, currently 2; version 0.1 wrote 1;
- ``class_names``: class name of each row of the class head, "" for unused rows; left out if not
  known;
- ``settings``: settings that the tensors do not show, see :mod:`dab_detr.checkpoint.settings`;
- ``model_config``: the LazyConfig of the model, with pixel mean and standard deviation, as plain
  data, see :mod:`dab_detr.stored_config`; left out if not known, as the following;
- ``image_format``: of the images, such as "RGB";
- ``resize``: how images are resized for the model: a mapping with ``short_edge`` and ``max_size``
  (of the longer side; null: any), in pixels; null: not at all;
- ``package_version``: of dab_detr, which wrote the file.

Everything is JSON: text, numbers, lists and mappings. Readers ignore unknown keys, so that a new
key needs no new version. The tensor names of an earlier version are a layout of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dab_detr import __version__
from dab_detr.errors import InputError

KEY = "description"
_FORMAT, _VERSION = "dab_detr", 2
_CONFIG = ("model_config", "image_format", "resize")


def describe(
    *,
    class_names: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The description to write; what is not known is left out.

    Args:
        class_names, settings: see above.
        config: the entries of :func:`~dab_detr.stored_config.settings_to_store`.
    """
    description: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    if class_names is not None:
        description["class_names"] = list(class_names)
    if settings:
        description["settings"] = dict(settings)
    return {**description, **(config or {}), "package_version": __version__}


def config_of(description: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of a description that come from the config of the training."""
    return {key: description[key] for key in _CONFIG if key in (description or {})}


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
