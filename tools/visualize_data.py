#!/usr/bin/env python
"""Draw what the data loader feeds the model: ``dab-detr visualize data``."""

import sys

from dab_detr.cli.visualize_data import main

if __name__ == "__main__":
    sys.exit(main())
