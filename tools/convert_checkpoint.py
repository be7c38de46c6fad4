#!/usr/bin/env python
"""Convert a DAB-DETR checkpoint between layouts: ``dab-detr convert``."""

import sys

from dab_detr.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
