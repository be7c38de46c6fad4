#!/usr/bin/env python
"""Train or evaluate DAB-DETR from a LazyConfig file; see --help and README.md."""

import sys

from dab_detr.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
