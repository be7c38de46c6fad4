#!/usr/bin/env python
"""Draw what the data loader feeds the model: ``dab-detr visualize data``."""

import sys
from collections.abc import Sequence

from dab_detr.cli.main import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run("visualize data", arguments, "visualize_data.py")


if __name__ == "__main__":
    sys.exit(main())
