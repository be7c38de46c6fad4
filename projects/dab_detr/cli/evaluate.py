"""``dab-detr eval``: ``train_net.py --eval-only`` by its own name."""

from collections.abc import Sequence

from dab_detr.cli import train


def main(arguments: Sequence[str], program: str) -> int:
    """Evaluate; returns the exit code."""
    return train.main(["--eval-only", *arguments], program)
