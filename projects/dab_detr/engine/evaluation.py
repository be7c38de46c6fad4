"""Evaluation with Detectron2's evaluators, and its results as a file and a table."""

import contextlib
import copy
import json
import math
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from dab_detr.data.images import UnreadableImage
from dab_detr.errors import InputError
from dab_detr.files import write_whole
from dab_detr.inference.copy import inference_copy

RESULTS_FILE = "evaluation.json"


def evaluate(
    cfg: DictConfig,
    model: nn.Module,
    *,
    step: int | None = None,
    averaged: nn.Module | None = None,
) -> dict[str, Any]:
    """Run ``cfg.dataloader.evaluator`` over ``cfg.dataloader.test``; write ``evaluation.json``.

    Args:
        model: on its device; it is left as it is.
        step: noted in the file.
        averaged: the same model with averaged weights; its tasks end in "_ema".

    Returns:
        Metrics by task, e.g. ``{"bbox": {"AP": 42.2, ...}}``, in per cent; empty on workers other
        than the first.

    Raises:
        InputError: if an image cannot be read: leaving it out would change the result.
    """
    results = dict(_run(cfg, model))
    if averaged is not None:
        cfg = copy.deepcopy(cfg)
        if "output_dir" in cfg.dataloader.evaluator:
            cfg.dataloader.evaluator.output_dir += "_ema"
        results |= {f"{task}_ema": metrics for task, metrics in _run(cfg, averaged).items()}
    if comm.is_main_process():
        content = json.dumps({"step": step, "results": _without_nan(results)}, indent=2) + "\n"
        path = Path(cfg.train.output_dir) / RESULTS_FILE
        write_whole(path, lambda file: file.write(content.encode()))
    return results


def read_results(path: Path, step: int) -> dict[str, Any] | None:
    """What :func:`evaluate` has written, if there is such a file and it is of this step."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        if content["step"] == step:
            return _with_nan(content["results"])
    return None


def _run(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    loader = instantiate(cfg.dataloader.test)
    evaluator = instantiate(cfg.dataloader.evaluator)
    try:
        results = inference_on_dataset(inference_copy(model), loader, evaluator)
    except UnreadableImage as error:
        # one that comes from a data worker holds its traceback, and ends in what was said
        *_, reason = str(error).splitlines()
        raise InputError(
            f"{reason.removeprefix(f'{UnreadableImage.__module__}.UnreadableImage: ')} The "
            "evaluation needs it: mend the file, or take it out of the annotations."
        ) from error
    if comm.is_main_process():
        print_csv_format(results)
    # evaluators return nothing where there was nothing to evaluate
    return results or {}


def format_results(results: dict[str, Any]) -> str:
    """The first six numbers of every task (for boxes AP .. APl) as a table."""
    tables = []
    for task, metrics in results.items():
        head = list(metrics.items())[:6]
        tables.append(
            tabulate(
                [[task, *(f"{value:.2f}" for _, value in head)]],
                headers=["", *(name for name, _ in head)],
                tablefmt="github",
                disable_numparse=True,
            )
        )
    return "\n\n".join(tables)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN, which stands for a size or class that the data does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value: Any) -> Any:
    """The reverse of :func:`_without_nan`."""
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    return math.nan if value is None else value
