"""Evaluation with Detectron2's evaluators, and its results as a file and a table."""

import json
import math
import os
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

RESULTS_FILE = "evaluation.json"


def evaluate(cfg: DictConfig, model: nn.Module, *, step: int | None = None) -> dict[str, Any]:
    """Run ``cfg.dataloader.evaluator`` over ``cfg.dataloader.test``; write ``evaluation.json``.

    Args:
        model: on its device; its training mode is kept.
        step: noted in the file.

    Returns:
        Metrics by task, e.g. ``{"bbox": {"AP": 42.2, ...}}``, in per cent; empty on workers other
        than the first.
    """
    loader = instantiate(cfg.dataloader.test)
    results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
        content = {"step": step, "results": _without_nan(results)}
        path = Path(cfg.train.output_dir) / RESULTS_FILE
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(unfinished, path)
    return results


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
    return "\n".join(tables)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN, which stands for a size or class that the data does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
