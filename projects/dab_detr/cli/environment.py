"""``dab-detr environment``: what is installed."""

import argparse
from collections.abc import Sequence

from dab_detr.environment import describe


def main(arguments: Sequence[str] | None, program: str) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program, description="Print what is installed, and which kind of Detectron2."
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="also import PyTorch and Detectron2, which takes seconds, and look for GPUs",
    )
    args = parser.parse_args(arguments)
    for part, text in describe(check=args.check):
        print(f"{part:12} {text}")
    return 0
