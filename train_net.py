#!/usr/bin/env python
"""Train or evaluate DAB-DETR from a LazyConfig file; see --help and README.md."""

import sys

from dab_detr.engine.arguments import checked_arguments

if __name__ == "__main__":
    # --help and wrong usage are answered before Detectron2 is loaded, which takes seconds
    checked_arguments(sys.argv[1:])

    from dab_detr.engine.main import main

    sys.exit(main())
