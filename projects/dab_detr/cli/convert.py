"""``dab-detr convert``: converts a checkpoint to another layout, with a report on all tensors."""

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None, program: str) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Convert a DAB-DETR checkpoint between layouts, with a report on all tensors.",
        epilog="Reads the published .pth, detrex's and mmdetection's .pth, a directory or "
        ".safetensors of transformers, and this project's own; the layout is detected.",
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help="a file, a directory of transformers, or a name of dab-detr zoo",
    )
    parser.add_argument(
        "output", metavar="OUT", help="a .pth or .safetensors file; for hf a directory"
    )
    parser.add_argument("--to", choices=("dab_detr", "official", "hf"), default="dab_detr")
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="80 and 91 keep COCO's classes; any other number re-initialises the class head",
    )
    parser.add_argument(
        "--coco-classes",
        action="store_true",
        help="the classes of IN are COCO's, 80 or 91 (raw COCO ids); for files without class names",
    )
    parser.add_argument(
        "--num-heads", type=int, help="for hf's config.json, if IN does not have it (default 8)"
    )
    parser.add_argument(
        "--key-temperature",
        type=float,
        help="for hf's config.json, if IN does not have it (default 20)",
    )
    parser.add_argument(
        "--dilation",
        action=argparse.BooleanOptionalAction,
        help="for hf: whether the backbone is dilated (DC5), if IN does not say so",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="convert the EMA weights of a training's checkpoint instead of its weights",
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args(arguments)
    if args.num_classes is not None and args.num_classes < 1:
        parser.error("--num-classes has to be at least 1.")

    from dab_detr.checkpoint.files import convert_file

    chosen = {name: getattr(args, name) for name in ("num_heads", "key_temperature", "dilation")}
    report = convert_file(
        args.input,
        args.output,
        args.to,
        num_classes=args.num_classes,
        coco_classes=args.coco_classes,
        averaged=args.ema,
        settings={name: value for name, value in chosen.items() if value is not None},
        force=args.force,
    )
    print(report)
    print(f"{args.output} written, layout {args.to}")
    return 0
