"""What a run of the benchmark found, as a table and as JSON."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
from tabulate import tabulate
from torch import Tensor

from benchmarking.turns import Contestant


def rows(
    contestants: Sequence[Contestant],
    *,
    images: int,
    flops: float | None = None,
    matrix: Contestant | None = None,
) -> list[dict[str, Any]]:
    """One row a contestant, in seconds, bytes and operations (a multiply-add is two).

    Args:
        images: that a run processes.
        flops: of a run; None leaves the rates out.
        matrix: the matrix product that took turns with them.
    """
    last = contestants[-1].median
    peak = None
    if matrix is not None:
        peak = matrix.outcome["flops"].item() / matrix.median
    found = []
    for contestant in contestants:
        row = {
            "contestant": contestant.name,
            "median_s": contestant.median,
            "fastest_s": min(contestant.seconds),
            "slowest_s": max(contestant.seconds),
            "ratio": last / contestant.median,
            "images_per_s": images / contestant.median,
            "peak_memory_bytes": contestant.peak_memory,
        }
        if flops is not None:
            row["flops"] = flops
            row["flops_per_s"] = flops / contestant.median
            if peak:
                row["share_of_matrix_rate"] = row["flops_per_s"] / peak
        if contestant.profile:
            row["profile"] = contestant.profile
        found.append(row)
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows for people, in Markdown."""
    columns = {
        "contestant": lambda row: row["contestant"],
        "median (from-to), s": lambda row: (
            f"{row['median_s']:.3g} ({row['fastest_s']:.3g}-{row['slowest_s']:.3g})"
        ),
        **_ratios(found),
        "images/s": lambda row: f"{row['images_per_s']:.3g}",
        "peak memory, GB": lambda row: (
            "not measured"
            if row["peak_memory_bytes"] is None
            else f"{row['peak_memory_bytes'] / 1e9:.2f}"
        ),
    }
    if "flops_per_s" in found[0]:
        columns["GFLOP"] = lambda row: f"{row['flops'] / 1e9:.0f}"
        columns["GFLOP/s"] = lambda row: f"{row['flops_per_s'] / 1e9:.0f}"
    if "share_of_matrix_rate" in found[0]:
        columns["of matrix rate"] = lambda row: f"{100 * row['share_of_matrix_rate']:.0f} %"
    lines = [[cell(row) for cell in columns.values()] for row in found]
    return tabulate(lines, list(columns), tablefmt="github", disable_numparse=True)


def _ratios(found: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping], str]]:
    """What a row is compared with: the last one's time, or in a series the first one's."""
    if "work_ratio" not in found[0]:
        return {f"{found[-1]['contestant']} / this": lambda row: f"{row['ratio']:.2f}"}
    return {
        "time / first": lambda row: f"{row['ratio']:.2f}",
        "work / first": lambda row: f"{row['work_ratio']:.2f}",
    }


def profiles(found: Sequence[Mapping[str, Any]], longest: int = 12) -> str:
    """In which of PyTorch's operations each row's time goes, side by side, in Markdown.

    Args:
        found: rows with a profile. longest: so many operations, by their time in all rows.
    """
    total = Counter()
    for row in found:
        total.update(row["profile"])
    lines = [
        [name, *(f"{1e3 * row['profile'].get(name, 0):.1f}" for row in found)]
        for name, _ in total.most_common(longest)
    ]
    lines.append(["all", *(f"{1e3 * sum(row['profile'].values()):.1f}" for row in found)])
    head = ["operation, ms", *(row["contestant"] for row in found)]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def disagreements(
    outcomes: Mapping[str, Mapping[str, Tensor]],
    reference: Mapping[str, Tensor],
    limits: Mapping[str, float],
) -> list[str]:
    """Which contestants give other numbers than the reference, one sentence each.

    Args:
        outcomes: by contestant. reference: what they have to agree with; may name more.
        limits: the largest difference allowed, by a name in the outcomes; ``*`` is for the others.
            Differences are relative to the reference's largest value.
    """
    found = []
    for contestant, outcome in outcomes.items():
        for name, actual in outcome.items():
            expected = reference[name]
            if actual.shape != expected.shape:
                found.append(f"{contestant}: {name} has the shape {tuple(actual.shape)}.")
                continue
            largest = expected.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            error = ((actual.float() - expected.float()).abs().max() / largest).item()
            limit = limits.get(name, limits["*"])
            # a NaN is a disagreement, too
            if not error <= limit:
                found.append(f"{contestant}: {name} differs by {error:.2g}, more than {limit:g}.")
    return found


def machine(device: str) -> dict[str, str]:
    """Where and with what the figures were measured."""
    if device.startswith("cuda"):
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{_processor()}, {torch.get_num_threads()} threads"
    return {
        "device": processor,
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "transformers": _version("transformers"),
        "CUDA": torch.version.cuda if device.startswith("cuda") else "not used",
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
