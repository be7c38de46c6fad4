#!/usr/bin/env python
"""Convert a DAB-DETR checkpoint between layouts: ``dab-detr convert``."""

import sys
from collections.abc import Sequence

from dab_detr.cli.main import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run("convert", arguments, "convert_checkpoint.py")


if __name__ == "__main__":
    sys.exit(main())
