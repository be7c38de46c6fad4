"""``dab-detr eval``: the same as ``train_net.py --eval-only``."""

from collections.abc import Sequence

from dab_detr.cli import train


def main(arguments: Sequence[str], program: str) -> int:
    """Run the command; returns the exit code."""
    return train.main(["--eval-only", *arguments], program)
