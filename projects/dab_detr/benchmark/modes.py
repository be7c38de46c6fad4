"""What each mode of the benchmark measures: which contestants, how much work, what has to agree."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dab_detr.analysis import count_flops
from dab_detr.benchmark import contestants as models
from dab_detr.benchmark import losses
from dab_detr.benchmark.report import disagreements, rows
from dab_detr.benchmark.turns import Contestant, take_turns
from dab_detr.compiling import require_compiler
from dab_detr.config import get_config
from dab_detr.errors import InputError

# Of float32 against float32, and of 16 bits against float32; scores and boxes are in 0..1.
_LIMITS = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}
_TRAINING_LIMITS = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 1e-1}


class Disagreement(RuntimeError):
    """Contestants that do not compute the same; the message says which and by how much."""


def infer(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """From normalised pixels to the last layer's logits and boxes."""
    setting = _setting(args, folder, size=(800, 1056), batch=1)
    model = models.write_weights(setting)
    flops = 2e9 * setting.batch * count_flops(model, setting.height, setting.width)["total"]
    exact = setting._replace(device="cpu", dtype="float32")
    reference = models.infer_ours(exact).outcome()
    wanted = [
        ("as trained", models.infer_ours, {}),
        ("inference_copy", models.infer_ours, {"fast": True}),
    ]
    if _gives_back(args):
        kept = {"fast": True, "keep_memory": True}
        wanted.append(("inference_copy, memory kept", models.infer_ours, kept))
    if args.compile:
        fast = {"fast": True, "compile": True}
        wanted.append(("inference_copy, compiled", models.infer_ours, fast))
        if _gives_back(args):
            kept = {**fast, "keep_memory": True}
            wanted.append(("inference_copy, compiled, memory kept", models.infer_ours, kept))
        wanted.append(("transformers, compiled", models.infer_transformers, {"compile": True}))
    wanted.append(("transformers", models.infer_transformers, {}))
    found = _contestants(wanted, setting, args)
    limit = _LIMITS[setting.dtype]
    return _measure(found, args, {"*": limit}, reference, images=setting.batch, flops=flops)


def train(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A step: forward, matching, losses, backward, clipping and fused AdamW."""
    if args.dtype == "float16":
        raise InputError("--dtype float16 trains with a gradient scaler only: take bfloat16.")
    setting = _setting(args, folder, size=(480, 640), batch=2)
    models.write_weights(setting)
    plain = models.train_ours(setting._replace(device="cpu", dtype="float32"))
    # PyTorch's counter sees the backward pass, fvcore's does not
    # and that only in attention that it knows as matrix products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        reference = plain.outcome()
    wanted = [("memory given back", models.train_ours, {})] if _gives_back(args) else []
    ours = {"keep_memory": setting.device == "cpu"}
    wanted.append(("as train_net.py", models.train_ours, ours))
    if args.compile:
        compiled = {**ours, "compile": True}
        wanted.append(("the same, train.compile=True", models.train_ours, compiled))
    wanted.append(("transformers", models.train_transformers, {}))
    found = _contestants(wanted, setting, args)
    return _measure(
        found,
        args,
        {"*": _TRAINING_LIMITS[setting.dtype]},
        reference,
        images=setting.batch,
        flops=float(counter.get_total_flops()),
    )


def matcher(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The assignments of all layers and images."""
    return _losses(args, losses.match)


def criterion(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Matching, losses and their gradient."""
    return _losses(args, losses.compute_losses)


def growth(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """An inference copy's time and memory while one thing grows and the others stay."""
    base = _setting(args, folder, size=(480, 640), batch=1)
    kept = base.overrides
    series = {
        "image size": [
            base._replace(height=height, width=width)
            for height, width in ((480, 640), (640, 853), (800, 1066), (1000, 1333), (1333, 1333))
        ],
        "batch": [base._replace(batch=batch) for batch in (1, 2, 4, 8, 16, 32)],
        "queries": [
            base._replace(overrides=[*kept, f"model.num_queries={count}"])
            for count in (100, 300, 600, 900)
        ],
        "decoder layers": [
            base._replace(overrides=[*kept, f"model.num_decoder_layers={count}"])
            for count in (1, 2, 4, 6, 12)
        ],
    }
    found = []
    for name, settings in series.items():
        measured = []
        for setting in settings:
            model = models.write_weights(setting)
            contestant = _contestants(
                [(_grown(name, setting), models.infer_ours, {"fast": True})], setting, args
            )[0]
            take_turns([contestant], args.device, repeats=args.repeats, warmup=args.warmup)
            flops = count_flops(model, setting.height, setting.width)["total"]
            measured.append((contestant, 2e9 * setting.batch * flops))
        # the first of a series is what the others are compared with
        smallest = measured[0]
        for (contestant, flops), setting in zip(measured, settings):
            row = rows([contestant], images=setting.batch, flops=flops)[0]
            row["ratio"] = contestant.median / smallest[0].median
            row["work_ratio"] = flops / smallest[1]
            found.append(row)
    return found


MODES: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
    "infer": infer,
    "train": train,
    "matcher": matcher,
    "criterion": criterion,
    "growth": growth,
}


def _setting(
    args: argparse.Namespace, folder: Path, *, size: tuple[int, int], batch: int
) -> models.Setting:
    if args.compile:
        require_compiler(torch.device(args.device), "--compile")
    height, width = args.size or size
    return models.Setting(
        folder=folder,
        config_file=args.config_file,
        overrides=list(args.overrides),
        batch=args.batch or batch,
        height=height,
        width=width,
        device=args.device,
        dtype=args.dtype,
    )


def _grown(name: str, setting: models.Setting) -> str:
    value = {
        "image size": f"{setting.width}x{setting.height}",
        "batch": str(setting.batch),
    }.get(name) or setting.overrides[-1].partition("=")[2]
    return f"{name} {value}"


def _contestants(
    wanted: Sequence[tuple[str, Callable, dict[str, bool]]],
    setting: Any,
    args: argparse.Namespace,
) -> list[Contestant]:
    """All see the same; ``keep_memory`` is no matter of the model, but of its process."""
    return [
        Contestant(
            name,
            prepare,
            {"setting": setting, **{k: v for k, v in switches.items() if k != "keep_memory"}},
            keep_memory=args.keep_memory or switches.get("keep_memory", False),
        )
        for name, prepare, switches in wanted
    ]


def _gives_back(args: argparse.Namespace) -> bool:
    """Whether processes give freed memory back unless they are told not to."""
    return args.device == "cpu" and not args.keep_memory


def _losses(args: argparse.Namespace, prepare: Callable) -> list[dict[str, Any]]:
    model = get_config(args.config_file, args.overrides).model
    setting = losses.LossSetting(
        layers=args.layers,
        batch=args.batch or 16,
        queries=model.num_queries,
        classes=model.num_classes,
        objects=args.objects,
        device=args.device,
    )
    wanted = [
        ("all layers at once", prepare, {"at_once": True}),
        ("layer by layer", prepare, {"at_once": False}),
    ]
    found = _contestants(wanted, setting, args)
    reference = prepare(setting._replace(device="cpu"), at_once=False).outcome()
    return _measure(found, args, {"*": 1e-4, "pairs": 0.0}, reference, images=setting.batch)


def _measure(
    found: list[Contestant],
    args: argparse.Namespace,
    limits: dict[str, float],
    reference: dict[str, Tensor],
    *,
    images: int,
    flops: float | None = None,
) -> list[dict[str, Any]]:
    matrix = None
    turns = list(found)
    if flops is not None:
        matrix = Contestant(
            "matrix product",
            models.matrix_product,
            {"device": args.device, "dtype": args.dtype},
        )
        turns.append(matrix)

    def check() -> None:
        outcomes = {contestant.name: contestant.outcome for contestant in found}
        wrong = disagreements(outcomes, reference, limits)
        if wrong:
            raise Disagreement(" ".join(wrong))

    take_turns(turns, args.device, repeats=args.repeats, warmup=args.warmup, check=check)
    return rows(found, images=images, flops=flops, matrix=matrix)
