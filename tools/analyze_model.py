#!/usr/bin/env python
"""Print parameters and GFLOPs of the model that a config describes, or the memory to train it."""

import argparse
import json
import sys
import warnings

from detectron2.config import instantiate
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from dab_detr.analysis import analyze, training_memory
from dab_detr.config import get_config
from dab_detr.engine.memory import checkpoint_activations
from dab_detr.engine.trainer import AMP_DTYPES
from dab_detr.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1280), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--training-memory",
        type=int,
        metavar="BATCH",
        help="instead: the memory of a training step of so many images, with the config's "
        "train.amp and train.activation_checkpointing",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(arguments)
    if min(args.size) < 32:
        parser.error("--size has to be at least 32 32.")
    if args.training_memory is not None and args.training_memory < 1:
        parser.error("--training-memory has to be at least 1.")
    try:
        cfg = get_config(args.config_file, args.overrides)
        with warnings.catch_warnings():
            # tracing speaks of every shape that it takes as fixed
            warnings.simplefilter("ignore")
            model = instantiate(cfg.model)
            if args.training_memory:
                print_training_memory(cfg, model, args)
                return 0
            rows = analyze(model, *args.size)
    except InputError as error:
        print(f"analyze_model.py: {error}", file=sys.stderr)
        return 1
    except (TypeError, ValueError) as error:
        print(f"analyze_model.py: the model cannot be built: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"config": args.config_file, "size": list(args.size), **rows}, indent=2))
    else:
        height, width = args.size
        table = [
            [
                part,
                *(f"{row[key]:,}" if key in row else "" for key in ("parameters", "frozen")),
                f"{row['gflops']:.2f}",
            ]
            for part, row in rows.items()
        ]
        headers = ["part", "parameters", "frozen", f"GFLOPs at {width}x{height}"]
        print(tabulate(table, headers, tablefmt="github", colalign=("left", *["right"] * 3)))
    return 0


def print_training_memory(cfg: DictConfig, model: nn.Module, args: argparse.Namespace) -> None:
    """One line, or a line of JSON."""
    checkpoint_activations(model, **cfg.train.activation_checkpointing)
    dtype = AMP_DTYPES[cfg.train.amp.dtype] if cfg.train.amp.enabled else None
    count = training_memory(model.train(), args.training_memory, *args.size, amp_dtype=dtype)
    height, width = args.size
    if args.json:
        print(json.dumps({"batch": args.training_memory, "size": list(args.size), "bytes": count}))
    else:
        print(f"{args.training_memory} x {width}x{height}: {count / 2**30:.2f} GiB of tensors")


if __name__ == "__main__":
    sys.exit(main())
