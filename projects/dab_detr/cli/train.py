"""``dab-detr train``, and ``train_net.py``."""

from collections.abc import Sequence

from dab_detr.engine.arguments import checked_arguments


def main(arguments: Sequence[str] | None = None, program: str = "train_net.py") -> int:
    """Train, or evaluate with ``--eval-only``; returns the exit code."""
    # handle --help and wrong usage before importing Detectron2, which takes seconds
    checked_arguments(arguments, program)

    from dab_detr.engine.main import main

    return main(arguments, program=program)
