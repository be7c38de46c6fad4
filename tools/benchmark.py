#!/usr/bin/env python
"""Measure time and memory beside transformers' DAB-DETR with the same weights, taking turns.

First all have to give the same numbers; where they do not, nothing is measured.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from benchmarking.contestants import DTYPES
from benchmarking.modes import MODES, SERIES, Disagreement
from benchmarking.report import machine, profiles, table
from benchmarking.turns import ContestantFailed
from dab_detr.errors import InputError
from dab_detr.files import write_whole

# options that say nothing to a mode
UNUSED = {
    "infer": ("series", "layers", "objects"),
    "train": ("series", "layers", "objects"),
    "matcher": ("size", "dtype", "compile", "series"),
    "criterion": ("size", "dtype", "compile", "series"),
    "growth": ("size", "batch", "compile", "profile", "layers", "objects"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=list(MODES))
    parser.add_argument("--config-file", default="dab_detr_r50_50ep.py", metavar="FILE")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, help="images at once")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of autocast")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="all contestants' processes keep the memory that they free, see docs/PERFORMANCE.md",
    )
    parser.add_argument(
        "--profile", action="store_true", help="also say in which operations the time goes"
    )
    parser.add_argument("--layers", type=int, default=6, help="of matcher and criterion")
    parser.add_argument("--objects", type=int, default=50, help="an image, of the same")
    parser.add_argument(
        "--series", action="append", choices=list(SERIES), help="of growth: only this, repeatable"
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each")
    parser.add_argument("--warmup", type=int, default=2, help="runs before those")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    args = parser.parse_intermixed_args(arguments)
    for name in ("batch", "repeats", "layers", "objects"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} has to be at least 1.")
    if args.warmup < 0:
        parser.error("--warmup has to be at least 0.")
    for name in UNUSED[args.mode]:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} does not go with {args.mode}.")
    if args.size is not None and min(args.size) < 32:
        parser.error("--size has to be at least 32 32.")
    if args.keep_memory and args.device != "cpu":
        parser.error("--keep-memory is for the CPU's memory.")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder.")
    # the contestants' processes would each repeat what libraries and PyTorch's profiler warn of
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    try:
        if args.device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"--device {args.device}: PyTorch sees no GPU.")
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            # tracing speaks of every shape that it takes as fixed
            warnings.simplefilter("ignore")
            found = MODES[args.mode](args, Path(folder))
    except (InputError, Disagreement, ContestantFailed) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 1
    about = machine(args.device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    print(table(found))
    if args.profile:
        print("", profiles(found), sep="\n")
    if args.json:
        report = {"arguments": vars(args), "machine": about, "rows": found}
        text = json.dumps(report, indent=2) + "\n"
        write_whole(Path(args.json), lambda file: file.write(text.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
