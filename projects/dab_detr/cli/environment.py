"""``dab-detr environment``: what is installed."""

import argparse
from collections.abc import Sequence

from dab_detr.environment import describe


def main(arguments: Sequence[str] | None = None, program: str = "environment") -> int:
    """Print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program, description="Print what is installed, and which Detectron2."
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="import PyTorch and Detectron2 as well, which takes seconds, and ask for GPUs",
    )
    args = parser.parse_args(arguments)
    for part, text in describe(check=args.check):
        print(f"{part:12} {text}")
    return 0
