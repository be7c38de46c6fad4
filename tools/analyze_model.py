#!/usr/bin/env python
"""Print the size and cost of a config's model: ``dab-detr analyze``."""

import sys

from dab_detr.cli.analyze import main

if __name__ == "__main__":
    sys.exit(main())
