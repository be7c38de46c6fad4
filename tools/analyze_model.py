#!/usr/bin/env python
"""Print the size and cost of a config's model: ``dab-detr analyze``."""

import sys
from collections.abc import Sequence

from dab_detr.cli.main import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run("analyze", arguments, "analyze_model.py")


if __name__ == "__main__":
    sys.exit(main())
