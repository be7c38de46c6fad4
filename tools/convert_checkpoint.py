#!/usr/bin/env python
"""Convert a DAB-DETR checkpoint between layouts; says what became of every tensor."""

import argparse
import sys

from dab_detr.checkpoint.conversion import fit_classes, from_dab_detr, to_dab_detr
from dab_detr.checkpoint.layouts import LAYOUTS
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.writing import refuse_existing, write_hf, write_state
from dab_detr.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Reads the published .pth, detrex's .pth, a directory or .safetensors of "
        "transformers, and this project's own; the layout is recognised.",
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
    parser.add_argument("--num-heads", type=int, default=8, help="for hf's config.json (default 8)")
    parser.add_argument(
        "--key-temperature", type=float, default=20, help="for hf's config.json (default 20)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args(arguments)
    if args.num_classes is not None and args.num_classes < 1:
        parser.error("--num-classes has to be at least 1.")
    try:
        refuse_existing(args.output, args.force)
        conversion = to_dab_detr(read_checkpoint(args.input)["model"])
        if args.num_classes is not None:
            if LAYOUTS[conversion.layout].backbone_alone:
                raise InputError(f"{args.input} is a backbone: it has no classes to change.")
            note = fit_classes(conversion.state, args.num_classes)
            conversion.notes += [note] if note else []
        if args.to == "dab_detr":
            write_state(conversion.state, args.output)
        elif args.to == "official":
            write_state(from_dab_detr(conversion.state, "official"), args.output)
        else:
            write_hf(conversion.state, args.output, args.num_heads, args.key_temperature)
    except InputError as error:
        print(f"convert_checkpoint.py: {error}", file=sys.stderr)
        return 1
    print(conversion.report())
    print(f"{args.output} written, layout {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
