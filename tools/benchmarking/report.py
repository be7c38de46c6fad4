"""The results of a benchmark run as a table and as JSON."""

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

from benchmarking.interleaved import Candidate


def rows(
    candidates: Sequence[Candidate],
    *,
    images: int,
    flops: float | None = None,
    matrix: Candidate | None = None,
) -> list[dict[str, Any]]:
    """One row per candidate, in seconds, bytes and operations (a multiply-add counts as two).

    Args:
        images: processed per run.
        flops: operations per run; None leaves the rates out.
        matrix: the matrix product that was measured between them.
    """
    last = candidates[-1].median
    peak = None
    if matrix is not None:
        peak = matrix.outcome["flops"].item() / matrix.median
    found = []
    for candidate in candidates:
        row = {
            "candidate": candidate.name,
            "median_s": candidate.median,
            "p95_s": candidate.percentile_95,
            "fastest_s": min(candidate.seconds),
            "slowest_s": max(candidate.seconds),
            "ratio": last / candidate.median,
            "images_per_s": images / candidate.median,
            "peak_memory_bytes": candidate.peak_memory,
        }
        if flops is not None:
            row["flops"] = flops
            row["flops_per_s"] = flops / candidate.median
            if peak:
                row["share_of_matrix_rate"] = row["flops_per_s"] / peak
        if candidate.profile:
            row["profile"] = candidate.profile
        found.append(row)
    return found


def with_files(
    candidates: Mapping[str, Sequence[Candidate]], sizes: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Rows of exported files and what they are compared with, one image per run.

    Args:
        candidates: by what they are given; the last of each is the one to compare with.
        sizes: bytes of the files, by name of the candidate.
    """
    return [
        {
            **row,
            "input": given,
            "file_bytes": sizes.get(candidate.name),
            "computes": candidate.computes,
        }
        for given, of_input in candidates.items()
        for candidate, row in zip(of_input, rows(of_input, images=1))
    ]


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table."""
    of_files = "file_bytes" in found[0]
    columns = {
        "candidate": lambda row: row["candidate"],
        **({"from": lambda row: row["input"]} if of_files else {}),
        "median (from-to), s": lambda row: (
            f"{row['median_s']:.3g} ({row['fastest_s']:.3g}-{row['slowest_s']:.3g})"
        ),
        **({"95th percentile, s": lambda row: f"{row['p95_s']:.3g}"} if of_files else {}),
        **_ratios(found),
        "images/s": lambda row: f"{row['images_per_s']:.3g}",
        "peak memory, GB": lambda row: (
            "not measured"
            if row["peak_memory_bytes"] is None
            else f"{row['peak_memory_bytes'] / 1e9:.2f}"
        ),
    }
    if of_files:
        columns["file, MB"] = lambda row: (
            "" if row["file_bytes"] is None else f"{row['file_bytes'] / 1e6:.1f}"
        )
        columns["computed by"] = lambda row: row["computes"]
    if "flops_per_s" in found[0]:
        columns["GFLOP"] = lambda row: f"{row['flops'] / 1e9:.0f}"
        columns["GFLOP/s"] = lambda row: f"{row['flops_per_s'] / 1e9:.0f}"
    if "share_of_matrix_rate" in found[0]:
        columns["of matrix rate"] = lambda row: f"{100 * row['share_of_matrix_rate']:.0f} %"
    lines = [[cell(row) for cell in columns.values()] for row in found]
    return tabulate(lines, list(columns), tablefmt="github", disable_numparse=True)


def _ratios(found: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Mapping], str]]:
    """What a row is compared with: the last row's time, or in a sweep the first row's."""
    if "file_bytes" in found[0]:
        return {"transformers / this": lambda row: f"{row['ratio']:.2f}"}
    if "work_ratio" not in found[0]:
        return {f"{found[-1]['candidate']} / this": lambda row: f"{row['ratio']:.2f}"}
    return {
        "time / first": lambda row: f"{row['ratio']:.2f}",
        "work / first": lambda row: f"{row['work_ratio']:.2f}",
    }


def profiles(found: Sequence[Mapping[str, Any]], longest: int = 12) -> str:
    """Time of each row by PyTorch operation, side by side, as a Markdown table.

    Args:
        found: rows with a profile.
        longest: how many operations to list, those with the most time over all rows.
    """
    total = Counter()
    for row in found:
        total.update(row["profile"])
    lines = [
        [name, *(f"{1e3 * row['profile'].get(name, 0):.1f}" for row in found)]
        for name, _ in total.most_common(longest)
    ]
    lines.append(["all", *(f"{1e3 * sum(row['profile'].values()):.1f}" for row in found)])
    head = ["operation, ms", *(row["candidate"] for row in found)]
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def disagreements(
    outcomes: Mapping[str, Mapping[str, Tensor]],
    reference: Mapping[str, Tensor],
    limits: Mapping[str, float],
) -> list[str]:
    """Which candidates compute other numbers than the reference, one sentence each.

    Args:
        outcomes: by candidate. reference: the expected tensors; may have more names.
        limits: tolerance by name of the outcome; ``*`` is for the others. Differences are relative
            to the reference's largest value.
    """
    found = []
    for candidate, outcome in outcomes.items():
        for name, actual in outcome.items():
            expected = reference[name]
            if actual.shape != expected.shape:
                found.append(f"{candidate}: {name} has the shape {tuple(actual.shape)}.")
                continue
            largest = expected.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            error = ((actual.float() - expected.float()).abs().max() / largest).item()
            limit = limits.get(name, limits["*"])
            # NaN counts as a disagreement
            if not error <= limit:
                found.append(f"{candidate}: {name} differs by {error:.2g}, more than {limit:g}.")
    return found


def machine(device: str) -> dict[str, str]:
    """Hardware and versions of the measurement."""
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
    """The processor's name on Linux, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
