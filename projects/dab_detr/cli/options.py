"""Options that several commands have."""

import argparse


def predictor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights`` and ``--config-file``, what a ``Predictor`` is made from."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a checkpoint, an exported file, or a name that dab-detr zoo lists",
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help="for a checkpoint that does not contain its config"
    )
