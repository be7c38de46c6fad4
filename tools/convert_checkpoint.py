#!/usr/bin/env python
"""Convert a DAB-DETR checkpoint between layouts; says what became of every tensor."""

import argparse
import sys
from typing import Any

from dab_detr.checkpoint.average import average_of
from dab_detr.checkpoint.classes import (
    CLASS_WEIGHT,
    COCO_NAMES,
    RAW_COCO_NAMES,
    coco_names,
    fit_classes,
)
from dab_detr.checkpoint.conversion import Conversion, from_dab_detr, to_dab_detr
from dab_detr.checkpoint.description import describe, description_of
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.settings import settings_of_file
from dab_detr.checkpoint.writing import refuse_existing, write_hf, write_state
from dab_detr.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Reads the published .pth, detrex's and mmdetection's .pth, a directory or "
        ".safetensors of transformers, and this project's own; the layout is detected.",
    )
    parser.add_argument("input", metavar="IN", help="a file, or a directory of transformers")
    parser.add_argument(
        "output", metavar="OUT", help="a .pth or .safetensors file; for hf a directory"
    )
    parser.add_argument("--to", choices=("dab_detr", "official", "hf"), default="dab_detr")
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="80 and 91 keep COCO's classes; any other number starts a new class head",
    )
    parser.add_argument(
        "--coco-classes",
        action="store_true",
        help="the classes of IN are COCO's, 80 or 91 (raw COCO ids), where IN does not say which "
        "it has",
    )
    parser.add_argument(
        "--num-heads", type=int, help="for hf's config.json, where IN does not say it (default 8)"
    )
    parser.add_argument(
        "--key-temperature",
        type=float,
        help="for hf's config.json, where IN does not say it (default 20)",
    )
    parser.add_argument(
        "--dilation",
        action=argparse.BooleanOptionalAction,
        help="for hf: whether the backbone is dilated (DC5), where IN does not say it",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="the averaged weights that a training's checkpoint holds, instead of its last ones",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args(arguments)
    if args.num_classes is not None and args.num_classes < 1:
        parser.error("--num-classes has to be at least 1.")
    try:
        refuse_existing(args.output, args.force)
        checkpoint = read_checkpoint(args.input)
        if args.ema:
            checkpoint["model"] = average_of(checkpoint, args.input)
        description = description_of(checkpoint, args.input)
        conversion = to_dab_detr(checkpoint["model"], description)
        if args.coco_classes and conversion.class_names is None:
            conversion.class_names = _said_to_be_coco(conversion, args.input)
        if args.num_classes is not None:
            _fit_classes(conversion, args.num_classes, args.input)
        settings = settings_of_file(checkpoint, description)
        for name in ("num_heads", "key_temperature", "dilation"):
            if getattr(args, name) is not None:
                settings[name] = getattr(args, name)
        if args.to == "dab_detr":
            about = describe(class_names=conversion.class_names, settings=settings)
            write_state(conversion.state, args.output, about)
        elif args.to == "official":
            write_state(from_dab_detr(conversion.state, "official", settings), args.output)
        else:
            conversion.notes.append(_write_hf(conversion, settings, args.input, args.output))
    except InputError as error:
        print(f"convert_checkpoint.py: {error}", file=sys.stderr)
        return 1
    print(conversion.report())
    print(f"{args.output} written, layout {args.to}")
    return 0


def _write_hf(conversion: Conversion, settings: dict[str, Any], source: str, path: str) -> str:
    """Returns what went into config.json that the tensors do not show."""
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


def _said_to_be_coco(conversion: Conversion, path: str) -> tuple[str, ...]:
    count = len(conversion.state.get(CLASS_WEIGHT, ()))
    for names in (COCO_NAMES, RAW_COCO_NAMES):
        if count == len(names):
            return names
    raise InputError(f"{path} has {count} classes; COCO's are 80, or 91 with raw ids.")


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


if __name__ == "__main__":
    sys.exit(main())
