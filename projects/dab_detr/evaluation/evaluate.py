"""Runs Detectron2's evaluators, and writes their results as a file and a table."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from dab_detr.console import bar
from dab_detr.data.images import UnreadableImage
from dab_detr.errors import InputError
from dab_detr.evaluation.test_sets import build_evaluators, build_loader, evaluated_sets, label
from dab_detr.evaluation.weights import fast_copy
from dab_detr.files import atomic_write_text

RESULTS_FILE = "evaluation.json"
_AVERAGED = "_ema"
_COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_MOST_COLUMNS = 12

logger = logging.getLogger(__name__)


def evaluate(
    cfg: DictConfig,
    model: nn.Module,
    *,
    step: int | None = None,
    averaged: nn.Module | None = None,
) -> dict[str, Any]:
    """Run ``cfg.dataloader.evaluator`` over ``cfg.dataloader.test``; write ``evaluation.json``.

    Args:
        model: on its device; it is not changed. It may be an exported file, see
            :class:`~dab_detr.evaluation.weights.ExportedDetector`.
        step: written to the file.
        averaged: the same model with EMA weights; its tasks end in "_ema".

    Returns:
        Metrics by task, e.g. ``{"bbox": {"AP": 42.2, ...}}``, in per cent; for several data sets
        ``{"bbox/FIRST": {...}, "bbox/SECOND": {...}}``. Empty on processes other than 0.

    Raises:
        InputError: if an image cannot be read, as leaving it out would change the result.
    """
    results = {}
    for weights, suffix in ((model, ""), (averaged, _AVERAGED)):
        if weights is None:
            continue
        fast = fast_copy(weights)
        for name in evaluated_sets(cfg):
            evaluators = build_evaluators(cfg, name, suffix=suffix)
            found = _run(fast, build_loader(cfg, name), evaluators)
            results |= {f"{task}{suffix}{label(cfg, name)}": x for task, x in found.items()}
    if comm.is_main_process():
        content = json.dumps({"step": step, "results": _without_nan(results)}, indent=2) + "\n"
        path = Path(cfg.train.output_dir) / RESULTS_FILE
        atomic_write_text(path, content)
    return results


def mean_precision(results: dict[str, Any]) -> dict[str, float]:
    """The AP by which weights are compared: the mean over all data sets that have one.

    Args:
        results: result of :func:`evaluate`.

    Returns:
        By task, without the names of data sets: the first task with an AP, of the raw and of the
        EMA weights, e.g. ``{"bbox": 42.2, "bbox_ema": 42.9}``.
    """
    found: dict[str, list[float]] = {}
    for key, metrics in results.items():
        if isinstance(metrics, Mapping) and "AP" in metrics:
            found.setdefault(key.partition("/")[0], []).append(metrics["AP"])
    means = {}
    for suffix in ("", _AVERAGED):
        tasks = [task for task in found if task.endswith(_AVERAGED) == bool(suffix)]
        for task in tasks[:1]:
            values = [value for value in found[task] if not math.isnan(value)]
            means[task] = float(np.mean(values)) if values else math.nan
    return means


def read_results(path: Path, step: int) -> dict[str, Any] | None:
    """The results that :func:`evaluate` has written for this step; None if there are none."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        if content["step"] == step:
            return _with_nan(content["results"])
    return None


def _run(model: nn.Module, loader: Any, evaluators: list[DatasetEvaluator]) -> dict[str, Any]:
    combined = _Together(evaluators)
    try:
        shown = bar(loader, desc="evaluation", unit="batch", leave=False)
        results = inference_on_dataset(model, shown, combined)
    except UnreadableImage as error:
        # an exception of a data worker has its traceback as text, with the message at the end
        *_, reason = str(error).splitlines()
        raise InputError(
            f"{reason.removeprefix(f'{UnreadableImage.__module__}.UnreadableImage: ')} The "
            "evaluation needs it: repair the file, or remove it from the annotations."
        ) from error
    if comm.is_main_process():
        print_csv_format(results)
    return results


class _Together(DatasetEvaluators):
    """Several evaluators; if their tasks have equal names, the second is called "<task>_2"."""

    def evaluate(self) -> dict[str, Any]:
        _wait_for_all()
        results: dict[str, Any] = {}
        for evaluator in self._evaluators:
            # evaluators return nothing without images, or on processes other than 0
            for task, metrics in (evaluator.evaluate() or {}).items():
                number = 1
                while (name := task if number == 1 else f"{task}_{number}") in results:
                    number += 1
                numbers = _numbers(name, metrics)
                if numbers is not None:
                    results[name] = numbers
        return results if comm.is_main_process() else {}


def _wait_for_all() -> None:
    """Wait for all processes and handle signals, which collectives of evaluators do not."""
    if comm.get_world_size() == 1:
        return
    arrived = torch.distributed.barrier(comm._get_global_gloo_group(), async_op=True)
    while not arrived.is_completed():
        time.sleep(0.01)
    # raises if another process has died
    arrived.wait()


def _numbers(name: str, metrics: Any) -> Any:
    """An evaluator's metrics as plain numbers; None if there are none."""
    if isinstance(metrics, Mapping):
        # printing and comparing them needs a flat mapping
        flat = flatten_results_dict(metrics)
        found = {key: _numbers(f"{name}/{key}", value) for key, value in flat.items()}
        return {key: value for key, value in found.items() if value is not None} or None
    try:
        return float(metrics)
    except (TypeError, ValueError):
        logger.warning(f"The evaluation's {name} is not a number and is left out.")
        return None


def format_results(results: dict[str, Any]) -> str:
    """A table of every task, without the metrics of classes: for boxes AP .. APl."""
    tables = []
    for task, metrics in results.items():
        # an evaluator may return a single number
        shown = _overall(metrics) if isinstance(metrics, Mapping) else {"": metrics}
        tables.append(
            tabulate(
                [[task, *(f"{value:.2f}" for value in shown.values())]],
                headers=["", *shown],
                tablefmt="github",
                disable_numparse=True,
            )
        )
    return "\n\n".join(tables)


def _overall(metrics: Mapping[str, float]) -> dict[str, float]:
    """COCO's metrics, then others, as many as fit, without those of classes (AP-CLASS)."""
    names = [name for name in _COCO_NAMES if name in metrics]
    names += [name for name in metrics if name not in names and not name.startswith("AP-")]
    return {name: metrics[name] for name in names[:_MOST_COLUMNS]}


def _without_nan(value: Any) -> Any:
    """Replaces NaN, the metric of a size or class without objects, by None, as JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value: Any) -> Any:
    """The inverse of :func:`_without_nan`."""
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    return math.nan if value is None else value
