"""The same boxes evaluated by each library: equal numbers, and how long it takes."""

import contextlib
import io
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from dab_detr.evaluation.coco_evaluator import find_cocoeval
from dab_detr.evaluation.ground_truth import GroundTruth


@dataclass
class Comparison:
    """What :func:`compare_backends` finds.

    Attributes:
        seconds: of each repetition, by backend.
        differences: the largest by kind of number; all are between 0 and 1, or -1 for none.
        average_precision: COCO's AP of the boxes, 0..1, by pycocotools.
    """

    seconds: dict[str, list[float]]
    differences: dict[str, float]
    average_precision: float


def compare_backends(
    truth: GroundTruth, results: list[dict[str, Any]], repeat: int = 1
) -> Comparison:
    """Evaluate the same boxes with pycocotools and faster-coco-eval in turn.

    A time covers what an evaluator does with the detections of a data set: indexing, matching,
    counting and summarizing them.

    Args:
        results: as for :meth:`GroundTruth.detections`.

    Raises:
        ValueError: if faster-coco-eval is not installed.
    """
    classes = {"pycocotools": COCOeval, "faster-coco-eval": find_cocoeval("faster-coco-eval")}
    comparison = Comparison({backend: [] for backend in classes}, {}, math.nan)
    for _ in range(repeat):
        evaluations = []
        for backend, cocoeval in classes.items():
            with contextlib.redirect_stdout(io.StringIO()):
                start = time.perf_counter()
                evaluation = cocoeval(truth.coco, truth.detections(results), "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                comparison.seconds[backend].append(time.perf_counter() - start)
            evaluations.append(
                {
                    "precision": evaluation.eval["precision"],
                    "recall": evaluation.eval["recall"],
                    # COCO's twelve numbers; faster-coco-eval has more
                    "summary": np.asarray(evaluation.stats[:12]),
                }
            )
        official, faster = evaluations
        for kind, numbers in official.items():
            # NaN counts as a difference
            error = np.nan_to_num(np.abs(numbers - faster[kind]), nan=np.inf).max()
            comparison.differences[kind] = max(float(error), comparison.differences.get(kind, 0.0))
    comparison.average_precision = float(official["summary"][0])
    return comparison
