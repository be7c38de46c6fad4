#!/usr/bin/env python
"""Compare the model with recorded outputs of the published code; prints one line per file."""

import argparse
import sys

from dab_detr.errors import InputError
from reference_comparison import LIMITS, compare_with_reference


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit code: 0 if all errors are within their tolerances, else 1. Tolerances: "
        + ", ".join(f"{name} {limit:g}" for name, limit in LIMITS.items()),
    )
    parser.add_argument("files", nargs="+", metavar="FILE.npz")
    parser.add_argument(
        "--compile", action="store_true", help="compile the model as train.compile=True does"
    )
    args = parser.parse_args(arguments)
    failed = False
    for path in args.files:
        try:
            errors = compare_with_reference(path, compile=args.compile)
        except InputError as error:
            print(f"check_reference.py: {error}", file=sys.stderr)
            failed = True
            continue
        over = [name for name, error in errors.items() if not error <= LIMITS[name]]
        failed |= bool(over)
        verdict = f"OVER THE TOLERANCE: {', '.join(over)}" if over else "ok"
        print(f"{path}: {', '.join(f'{k} {v:.1e}' for k, v in errors.items())}: {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
