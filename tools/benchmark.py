#!/usr/bin/env python
"""Compare time and memory with transformers' DAB-DETR, with the same weights in alternating runs.

All candidates have to compute the same numbers first; if they do not, nothing is measured.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from benchmarking.candidates import DTYPES
from benchmarking.interleaved import CandidateFailed
from benchmarking.modes import MODES, SWEEPS, Disagreement
from benchmarking.report import machine, profiles, table
from dab_detr.errors import InputError
from dab_detr.files import atomic_write_text

# options that a mode does not use
_FILES = ("files", "weights")
UNUSED = {
    "infer": ("sweep", "layers", "objects", *_FILES),
    "export": ("batch", "dtype", "device", "profile", "sweep", "layers", "objects"),
    "train": ("sweep", "layers", "objects", *_FILES),
    "matcher": ("size", "dtype", "compile", "sweep", *_FILES),
    "criterion": ("size", "dtype", "compile", "sweep", *_FILES),
    "scaling": ("size", "batch", "compile", "profile", "layers", "objects", *_FILES),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=list(MODES))
    parser.add_argument("--config-file", default="dab_detr_r50_50ep.py", metavar="FILE")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, help="images per run")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="autocast precision"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="also measure with torch.compile")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="every candidate keeps the memory that it frees, see docs/PERFORMANCE.md",
    )
    parser.add_argument(
        "--profile", action="store_true", help="also print the time of each operation"
    )
    parser.add_argument(
        "--layers", type=int, default=6, help="decoder layers, for matcher and criterion"
    )
    parser.add_argument(
        "--objects", type=int, default=50, help="per image, for matcher and criterion"
    )
    parser.add_argument(
        "--sweep",
        action="append",
        choices=list(SWEEPS),
        help="for scaling: only this sweep; repeatable",
    )
    parser.add_argument(
        "--weights", metavar="W", help="for export: a checkpoint of the config, not random weights"
    )
    parser.add_argument(
        "--files",
        nargs="+",
        metavar="FILE",
        help="for export: files exported from the weights, instead of all that can be written",
    )
    parser.add_argument("--threads", type=int, help="of each candidate; default: PyTorch's")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs per candidate")
    parser.add_argument("--warmup", type=int, default=2, help="runs before those, not timed")
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    args = parser.parse_intermixed_args(arguments)
    for name in ("batch", "repeats", "layers", "objects", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} has to be at least 1.")
    if args.warmup < 0:
        parser.error("--warmup has to be at least 0.")
    for name in UNUSED[args.mode]:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} has no effect on {args.mode}.")
    if args.size is not None and min(args.size) < 32:
        parser.error("--size has to be at least 32 32.")
    if args.files and not args.weights:
        parser.error("--files needs --weights, from which the files were exported.")
    if args.keep_memory and args.device != "cpu":
        parser.error("--keep-memory is for the CPU only.")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder.")
    if args.threads:
        torch.set_num_threads(args.threads)
    # otherwise each candidate's process repeats the warnings of libraries and PyTorch's profiler
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    try:
        if args.device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"--device {args.device}: PyTorch sees no GPU.")
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            # tracing warns about every shape that it treats as a constant
            warnings.simplefilter("ignore")
            found = MODES[args.mode](args, Path(folder))
    except (InputError, Disagreement, CandidateFailed) as error:
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
        atomic_write_text(Path(args.json), text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
