"""The modes of the benchmark: candidates, amount of work, and what has to agree."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarking import candidates, exported, losses
from benchmarking.interleaved import Candidate, run_interleaved
from benchmarking.report import disagreements, rows, with_files
from dab_detr.analysis import count_flops
from dab_detr.compiling import require_compiler
from dab_detr.config import get_config
from dab_detr.errors import InputError
from dab_detr.modeling.meta_arch import DABDETR

# Relative tolerance against the float32 reference, by precision; scores and boxes are in 0..1.
_LIMITS = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}
_TRAINING_LIMITS = {"float32": 1e-3, "bfloat16": 1e-1, "float16": 1e-1}
# where transformers has the model
_PEER = ("transformers.models.dab_detr.modeling_dab_detr",)


class Disagreement(RuntimeError):
    """Candidates that compute different numbers; the message says which and by how much."""


def infer(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Inference from normalised pixels to the last layer's class logits and boxes."""
    setting = _setting(args, folder, size=(800, 1056), batch=1)
    model = candidates.write_weights(setting)
    candidates.write_transformers(setting, model)
    flops = _inference_flops(setting, model)
    exact = setting._replace(device="cpu", dtype="float32")
    reference = candidates.infer_ours(exact).outcome()
    row = partial(_candidate, args, setting)
    copy = partial(row, prepare=candidates.infer_ours, fast=True)
    found = [row("as trained", candidates.infer_ours), *_variants(args, copy, "inference_copy")]
    if args.compile and args.device != "cpu":
        name = "inference_copy, compiled, CUDA graphs"
        found.append(copy(name, compile=True, cuda_graphs=True))
    peer = partial(row, prepare=candidates.infer_transformers, imports=_PEER)
    if args.compile:
        found.append(peer("transformers, compiled", compile=True))
    found.append(peer("transformers"))
    limit = _LIMITS[setting.dtype]
    return _measure(found, args, {"*": limit}, reference, images=setting.batch, flops=flops)


def export(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Exported files beside the models: from pixels, and whole predictions from an image."""
    setting = _setting(args, folder, size=(800, 1056), batch=1)
    model = candidates.write_weights(setting, args.weights)
    candidates.write_transformers(setting, model)
    paths = [Path(file) for file in args.files or exported.write_files(setting, model)]
    files, rule = exported.describe(paths, model)
    row = partial(_candidate, args, setting)
    peer = partial(row, prepare=candidates.infer_transformers, imports=_PEER)
    of_model = [row("inference_copy", candidates.infer_ours, fast=True)]
    if args.compile:
        name = "inference_copy, compiled"
        of_model.append(row(name, candidates.infer_ours, fast=True, compile=True))
        of_model.append(peer("transformers, compiled", compile=True))
    of_model.append(peer("transformers"))
    of_files = [row(x.path.name, exported.infer_file, path=x.path) for x in files]
    predict = partial(row, prepare=exported.predict_ours, rule=rule)
    copied = predict("Predictor, inference_copy")
    whole = [predict(f"Predictor, {x.path.name}", path=x.path) for x in files]
    pipeline = row(
        "transformers, pipeline", exported.predict_transformers, imports=_PEER, rule=rule
    )
    reference = candidates.infer_ours(setting).outcome()
    of_pixels = exported.expected_of_pixels(setting)
    of_image = exported.expected_of_image(setting, rule)
    precisions = [file.precision for file in files]
    compared = [
        *zip(of_files, precisions, repeat(of_pixels)),
        (copied, "fp32", of_image),
        *zip(whole, precisions, repeat(of_image)),
        # it resizes with torchvision, which rounds in another way than Pillow
        (pipeline, "int8", of_image),
    ]

    def wrong() -> list[str]:
        found = disagreements({x.name: x.outcome for x in of_model}, reference, {"*": 1e-3})
        return found + [
            f"{candidate.name}: {text}."
            for candidate, precision, expected in compared
            if (text := exported.difference(candidate.outcome, expected, precision))
        ]

    from_pixels, from_image = [*of_files, *of_model], [*whole, copied, pipeline]
    _run([*from_pixels, *from_image], args, wrong)
    sizes = {x.name: file.size for x, file in zip([*of_files, *whole], [*files, *files])}
    return with_files({"pixels": from_pixels, "image": from_image}, sizes)


def train(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A training step: forward, matching, losses, backward, clipping and fused AdamW."""
    if args.dtype == "float16":
        raise InputError("--dtype float16 needs a gradient scaler for training: use bfloat16.")
    setting = _setting(args, folder, size=(480, 640), batch=2)
    transformer = get_config(setting.config_file, setting.overrides).model.transformer
    if transformer.encoder.dropout or transformer.decoder.dropout or transformer.queries.dropout:
        raise InputError("dropout has to be 0 here: candidates would drop different units.")
    candidates.write_transformers(setting, candidates.write_weights(setting))
    plain = candidates.train_ours(setting._replace(device="cpu", dtype="float32"))
    # fvcore's counter leaves the backward pass out; PyTorch's counts attention only as matrix
    # products. The zeros that pad the values are half a percent of it.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        reference = plain.outcome()
    row = partial(_candidate, args, setting)
    ours = partial(row, prepare=candidates.train_ours)
    found = [ours("dab_detr, channels first", channels_last=False)]
    found += _variants(args, ours, "dab_detr")
    found.append(row("transformers", candidates.train_transformers, imports=_PEER))
    return _measure(
        found,
        args,
        {"*": _TRAINING_LIMITS[setting.dtype]},
        reference,
        images=setting.batch,
        flops=float(counter.get_total_flops()),
    )


def matcher(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The matching of all layers and images."""
    return _losses(args, losses.match)


def criterion(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Matching, losses and their gradients."""
    return _losses(args, losses.compute_losses)


def scaling(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Time and memory of an inference copy in sweeps: one setting varies, the others stay."""
    base = _setting(args, folder, size=(480, 640), batch=1)
    found = []
    for name in args.sweep or SWEEPS:
        # the others are compared with the first of their sweep
        first = None
        for value, setting in SWEEPS[name](base).items():
            flops = _inference_flops(setting, candidates.write_weights(setting))
            candidate = _candidate(
                args, setting, f"{name} {value}", candidates.infer_ours, fast=True
            )
            run_interleaved([candidate], args.device, repeats=args.repeats, warmup=args.warmup)
            first = first or (candidate.median, flops)
            row = rows([candidate], images=setting.batch, flops=flops)[0]
            row["ratio"] = candidate.median / first[0]
            row["work_ratio"] = flops / first[1]
            found.append(row)
    return found


def _sizes(base: candidates.Setting) -> dict[str, candidates.Setting]:
    sizes = ((480, 640), (640, 853), (800, 1066), (1000, 1333), (1333, 1333))
    return {f"{w}x{h}": base._replace(height=h, width=w) for h, w in sizes}


def _batches(base: candidates.Setting) -> dict[int, candidates.Setting]:
    return {batch: base._replace(batch=batch) for batch in (1, 2, 4, 8, 16, 32)}


def _overridden(
    base: candidates.Setting, *, key: str, values: Sequence[int]
) -> dict[int, candidates.Setting]:
    return {x: base._replace(overrides=[*base.overrides, f"{key}={x}"]) for x in values}


# Of the scaling mode: the setting that varies, and the whole setting for each of its values.
SWEEPS: dict[str, Callable[[candidates.Setting], dict[Any, candidates.Setting]]] = {
    "image-size": _sizes,
    "batch": _batches,
    "queries": partial(
        _overridden, key="model.transformer.queries.num_queries", values=(100, 300, 600, 900)
    ),
    "decoder-layers": partial(
        _overridden, key="model.transformer.decoder.num_layers", values=(1, 2, 4, 6, 12)
    ),
}

MODES: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
    "infer": infer,
    "export": export,
    "train": train,
    "matcher": matcher,
    "criterion": criterion,
    "scaling": scaling,
}


def _setting(
    args: argparse.Namespace, folder: Path, *, size: tuple[int, int], batch: int
) -> candidates.Setting:
    if args.compile:
        require_compiler(torch.device(args.device), "--compile")
    # the report gives the values that were used, defaults of the mode included
    args.size, args.batch = args.size or list(size), args.batch or batch
    height, width = args.size
    return candidates.Setting(
        folder=folder,
        config_file=args.config_file,
        overrides=list(args.overrides),
        batch=args.batch,
        height=height,
        width=width,
        device=args.device,
        dtype=args.dtype,
    )


def _candidate(
    args: argparse.Namespace,
    setting: candidates.Setting | losses.LossSetting,
    name: str,
    prepare: Callable,
    *,
    keep_memory: bool = False,
    imports: Sequence[str] = (),
    **arguments: Any,
) -> Candidate:
    return Candidate(
        name,
        prepare,
        {"setting": setting, **arguments},
        keep_memory=keep_memory or args.keep_memory,
        imports=imports,
    )


def _variants(
    args: argparse.Namespace, row: Callable[..., Candidate], name: str
) -> list[Candidate]:
    """One of our candidates as it is and compiled, each also with memory kept."""
    found = []
    for compile in (False, True) if args.compile else (False,):
        compiled = f"{name}, compiled" if compile else name
        found.append(row(compiled, compile=compile))
        # glibc returns freed memory to the system unless the process asks to keep it
        if args.device == "cpu" and not args.keep_memory:
            found.append(row(f"{compiled}, memory kept", compile=compile, keep_memory=True))
    return found


def _inference_flops(setting: candidates.Setting, model: DABDETR) -> float:
    """Operations per run; a multiply-add counts as two."""
    return 2e9 * setting.batch * count_flops(model, setting.height, setting.width)["total"]


def _losses(args: argparse.Namespace, prepare: Callable) -> list[dict[str, Any]]:
    model = get_config(args.config_file, args.overrides).model
    args.batch = args.batch or 16
    setting = losses.LossSetting(
        layers=args.layers,
        batch=args.batch,
        queries=model.transformer.queries.num_queries,
        classes=model.num_classes,
        objects=args.objects,
        device=args.device,
    )
    found = [
        _candidate(args, setting, "all layers at once", prepare, at_once=True),
        _candidate(args, setting, "layer by layer", prepare, at_once=False),
    ]
    reference = prepare(setting._replace(device="cpu"), at_once=False).outcome()
    return _measure(found, args, {"*": 1e-4, "pairs": 0.0}, reference, images=setting.batch)


def _measure(
    found: list[Candidate],
    args: argparse.Namespace,
    limits: dict[str, float],
    reference: dict[str, Tensor],
    *,
    images: int,
    flops: float | None = None,
) -> list[dict[str, Any]]:
    matrix = None
    measured = list(found)
    if flops is not None:
        matrix = Candidate(
            "matrix product",
            candidates.matrix_product,
            {"device": args.device, "dtype": args.dtype},
        )
        measured.append(matrix)

    def wrong() -> list[str]:
        outcomes = {candidate.name: candidate.outcome for candidate in found}
        return disagreements(outcomes, reference, limits)

    _run(measured, args, wrong)
    return rows(found, images=images, flops=flops, matrix=matrix)


def _run(
    measured: list[Candidate], args: argparse.Namespace, wrong: Callable[[], list[str]]
) -> None:
    """Run the candidates; ``wrong`` says which outcomes are, in sentences."""

    def check() -> None:
        sentences = wrong()
        if sentences:
            raise Disagreement(" ".join(sentences))

    run_interleaved(
        measured,
        args.device,
        repeats=args.repeats,
        warmup=args.warmup,
        check=check,
        profile=args.profile,
    )
