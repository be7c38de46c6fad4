"""``dab-detr analyze``: size and cost of a model."""

import argparse
import json
import warnings
from collections.abc import Sequence
from typing import Any

from dab_detr.engine.arguments import parse_arguments


def main(arguments: Sequence[str] | None, program: str) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Print parameters and GFLOPs of the model that a config describes, or the "
        "memory to train it.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(800, 1280), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--training-memory",
        type=int,
        metavar="BATCH",
        help="instead: the memory of a training step with BATCH images, with the config's "
        "train.amp and train.activation_checkpointing",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides, as key=value")
    args = parse_arguments(parser, arguments)
    if min(args.size) < 32:
        parser.error("--size has to be at least 32 32.")
    if args.training_memory is not None and args.training_memory < 1:
        parser.error("--training-memory has to be at least 1.")

    from dab_detr.analysis import analyze
    from dab_detr.config import build, get_config

    cfg = get_config(args.config_file, args.opts)
    with warnings.catch_warnings():
        # tracing warns about every shape that it treats as a constant
        warnings.simplefilter("ignore")
        model = build(cfg, "model")
        if args.training_memory:
            _print_training_memory(cfg, model, args)
            return 0
        rows = analyze(model, *args.size)
    if args.json:
        print(json.dumps({"config": args.config_file, "size": list(args.size), **rows}, indent=2))
    else:
        from tabulate import tabulate

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


def _print_training_memory(cfg: Any, model: Any, args: argparse.Namespace) -> None:
    """Print one line, or a line of JSON."""
    from dab_detr.analysis import training_memory
    from dab_detr.engine.memory import checkpoint_activations
    from dab_detr.engine.trainer import AMP_DTYPES

    checkpoint_activations(model, **cfg.train.activation_checkpointing)
    dtype = AMP_DTYPES[cfg.train.amp.dtype] if cfg.train.amp.enabled else None
    count = training_memory(model.train(), args.training_memory, *args.size, amp_dtype=dtype)
    height, width = args.size
    if args.json:
        print(json.dumps({"batch": args.training_memory, "size": list(args.size), "bytes": count}))
    else:
        print(f"{args.training_memory} x {width}x{height}: {count / 2**30:.2f} GiB of tensors")
