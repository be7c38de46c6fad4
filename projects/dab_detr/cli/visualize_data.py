"""``dab-detr visualize data``: draws augmented training images with their boxes."""

import argparse
from collections.abc import Sequence

from dab_detr.engine.arguments import data_arguments, parse_arguments

_EPILOG = """\
Example: %(prog)s --config-file configs/dab_detr_r50_50ep.py \\
             --train-data IMAGES_DIR ANN.json --val-data IMAGES_DIR ANN.json --output pictures
Exit code: 0, or 1 for wrong files, keys or values, 2 for wrong usage.
"""


def main(arguments: Sequence[str] | None, program: str) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Draw the images that the data loader feeds to the model, after augmentation, "
        "with their boxes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, help="a LazyConfig file")
    parser.add_argument("--output", default="./output/samples", help="folder; default: %(default)s")
    parser.add_argument("--count", type=int, default=16, help="of images; default: %(default)s")
    data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides, as key=value")
    args = parse_arguments(parser, arguments)
    if args.count < 1:
        parser.error("--count has to be at least 1.")

    from dab_detr.engine.setup import add_custom_data, setup_config
    from dab_detr.visualization.samples import draw_samples

    cfg = setup_config(args)
    cfg = add_custom_data(cfg, args)
    files = draw_samples(cfg, args.output, count=args.count)
    print(f"{len(files)} pictures are in {args.output}.")
    return 0
