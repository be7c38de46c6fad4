#!/usr/bin/env python
"""Draw what the data loader really feeds the model: augmented images with their boxes.

Example: visualize_data.py --config-file configs/dab_detr_r50_50ep.py \\
             --train-data IMAGES_DIR ANN.json --val-data IMAGES_DIR ANN.json --output pictures
Ends with 0, 1 for wrong files, keys or values, 2 for wrong usage.
"""

import argparse
import sys

from dab_detr.engine.arguments import data_arguments, parse_arguments
from dab_detr.engine.setup import add_own_data, config_of
from dab_detr.errors import InputError
from dab_detr.visualization.samples import draw_samples


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="a LazyConfig file")
    parser.add_argument("--output", default="./output/samples", help="folder; %(default)s")
    parser.add_argument("--count", type=int, default=16, help="number of images; %(default)s")
    data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides, as key=value")
    args = parse_arguments(parser, arguments)
    if args.count < 1:
        parser.error("--count has to be at least 1.")
    try:
        cfg = config_of(args)
        add_own_data(cfg, args)
        files = draw_samples(cfg, args.output, count=args.count)
    except InputError as error:
        print(f"visualize_data.py: {error}", file=sys.stderr)
        return 1
    print(f"{len(files)} pictures are in {args.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
