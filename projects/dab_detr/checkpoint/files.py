"""Conversion of checkpoint files between layouts."""

import os
from typing import Any

from dab_detr.checkpoint.addresses import locate
from dab_detr.checkpoint.average import average_of
from dab_detr.checkpoint.classes import CLASS_WEIGHT, coco_names, coco_rows, fit_classes
from dab_detr.checkpoint.conversion import Conversion, from_dab_detr, to_dab_detr
from dab_detr.checkpoint.description import config_of, describe, description_of
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.settings import settings_of_file
from dab_detr.checkpoint.writing import refuse_existing, write_hf, write_state
from dab_detr.config import get_config
from dab_detr.errors import InputError
from dab_detr.stored_config import settings_to_store, with_num_classes


def convert_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    to: str = "dab_detr",
    *,
    num_classes: int | None = None,
    coco_classes: bool = False,
    averaged: bool = False,
    settings: dict[str, Any] | None = None,
    force: bool = False,
) -> str:
    """Read a checkpoint in any known layout and write it in another.

    Args:
        source: see :func:`~dab_detr.checkpoint.addresses.locate`.
        target: a ``.pth`` or ``.safetensors`` file; for ``hf`` a folder.
        to: ``dab_detr``, ``official`` or ``hf``.
        num_classes: 80 and 91 keep COCO's classes; any other number re-initialises the class head.
        coco_classes: the classes are COCO's; for a ``source`` without class names.
        averaged: convert the EMA weights of a training's checkpoint instead of its weights.
        settings: those of ``num_heads``, ``key_temperature`` and ``dilation`` that ``source`` does
            not have.
        force: overwrite ``target``.

    Returns:
        A report on the tensors.

    Raises:
        InputError: if ``source`` cannot be read or expressed in the layout, or ``target`` exists.
    """
    refuse_existing(target, force)
    path, published = locate(source)
    checkpoint = read_checkpoint(path)
    if averaged:
        checkpoint["model"] = average_of(checkpoint, source)
    description = description_of(checkpoint, source)
    conversion = to_dab_detr(checkpoint["model"], description)
    if (coco_classes or published) and conversion.class_names is None:
        conversion.class_names = _assume_coco(conversion, source)
    if num_classes is not None:
        _fit_classes(conversion, num_classes, source)
    settings = settings_of_file(checkpoint, description) | (settings or {})
    if to == "dab_detr":
        config = config_of(description)
        if published:
            config = settings_to_store(get_config(published.config))
        about = describe(
            class_names=conversion.class_names,
            settings=settings,
            config=_for_classes(conversion, config),
        )
        write_state(conversion.state, target, about)
    elif to == "official":
        write_state(from_dab_detr(conversion.state, "official", settings), target)
    else:
        conversion.notes.append(_write_hf(conversion, settings, source, target))
    return conversion.report()


def _for_classes(conversion: Conversion, config: dict[str, Any]) -> dict[str, Any]:
    """The config's entries of the description, with the number of classes of the new file."""
    if "model_config" not in config or CLASS_WEIGHT not in conversion.state:
        return config
    num_classes = len(conversion.state[CLASS_WEIGHT])
    return config | {"model_config": with_num_classes(config["model_config"], num_classes)}


def _write_hf(conversion: Conversion, settings: dict[str, Any], source: str, path: str) -> str:
    """Returns a note on the settings in config.json that the tensors do not show."""
    if "dilation" not in settings:
        raise InputError(
            f"{source} does not say whether its backbone is dilated: add --dilation for a DC5 "
            "model, --no-dilation for any other."
        )
    names = ("num_heads", "key_temperature", "dilation")
    chosen = {name: settings[name] for name in names if name in settings}
    chosen = {"num_heads": 8, "key_temperature": 20.0} | chosen
    write_hf(conversion.state, path, **chosen, settings=settings)
    return "config.json: " + ", ".join(f"{name}={chosen[name]}" for name in names)


def _assume_coco(conversion: Conversion, path: str) -> tuple[str, ...]:
    names = coco_rows(conversion.state)
    if names is None:
        count = len(conversion.state.get(CLASS_WEIGHT, ()))
        raise InputError(f"{path} has {count} classes; COCO has 80, or 91 with raw ids.")
    return names


def _fit_classes(conversion: Conversion, num_classes: int, path: str) -> None:
    if CLASS_WEIGHT not in conversion.state:
        raise InputError(f"{path} is a backbone: it has no classes to change.")
    present = len(conversion.state[CLASS_WEIGHT])
    if conversion.class_names is None and {present, num_classes} == {80, 91}:
        raise InputError(
            f"{path} does not say whether its {present} classes are COCO's: add --coco-classes if "
            "they are."
        )
    note = fit_classes(conversion.state, num_classes, present=conversion.class_names)
    if note:
        conversion.notes.append(note)
        conversion.class_names = coco_names(num_classes, conversion.class_names)
