"""COCO's evaluation of boxes by faster-coco-eval where it is installed: the same numbers sooner."""

import contextlib
import io
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

BACKENDS = ("faster-coco-eval", "pycocotools")
# faster-coco-eval keeps the ids of images as float64
_MAX_IMAGE_ID = 2**53

logger = logging.getLogger(__name__)


class BoxEvaluator(COCOEvaluator):
    """Detectron2's evaluator with a choice of the library that matches and counts.

    Both give the numbers of COCO's own code, up to the rounding of float64, as long as boxes and
    scores are finite. Masks, keypoints and image ids that faster-coco-eval cannot hold (strings)
    go to pycocotools in any case.

    Args:
        dataset_name, arguments: as for :class:`detectron2.evaluation.COCOEvaluator`, without
            ``use_fast_impl``.
        backend: ``"faster-coco-eval"``, ``"pycocotools"``, or ``"auto"`` for the first of them that
            is installed.

    Raises:
        ValueError: for another backend, or one that is not installed.
    """

    def __init__(self, dataset_name: str, *, backend: str = "auto", **arguments: Any) -> None:
        self._cocoeval = find_cocoeval(backend)
        super().__init__(dataset_name, use_fast_impl=False, **arguments)

    def _eval_predictions(self, predictions: list[dict], img_ids: list[int] | None = None) -> None:
        if self._cocoeval is COCOeval:
            return super()._eval_predictions(predictions, img_ids)
        logger.info("Boxes are evaluated by faster-coco-eval, with the official numbers.")
        # Detectron2 takes these two from its module at the time of the call: the second where the
        # limit of detections is not COCO's.
        names = ("COCOeval", "COCOevalMaxDets")
        faster = {name: self._faster_than(getattr(coco_evaluation, name)) for name in names}
        with mock.patch.multiple(coco_evaluation, **faster):
            return super()._eval_predictions(predictions, img_ids)

    def _faster_than(self, official: type[COCOeval]) -> Callable[..., Any]:
        """Stands in for ``official``, which remains for what the faster class cannot do."""

        def build(coco_gt: Any, coco_dt: Any, iou_type: str) -> Any:
            ids = coco_gt.getImgIds()
            if iou_type == "bbox" and all(isinstance(i, int) and i < _MAX_IMAGE_ID for i in ids):
                return self._cocoeval(coco_gt, coco_dt, iou_type, print_function=print)
            return official(coco_gt, coco_dt, iou_type)

        return build


def find_cocoeval(backend: str = "auto") -> type:
    """The class ``COCOeval`` of a backend, see :class:`BoxEvaluator`.

    Raises:
        ValueError: for another backend, or one that is not installed.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(
            f"There is no evaluation backend {backend!r}: choose auto, {' or '.join(BACKENDS)}."
        )
    if backend == "pycocotools":
        return COCOeval
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        if backend == "auto":
            return COCOeval
        raise ValueError(
            f"The evaluation backend {backend!r} is not installed ({error}): "
            "pip install 'dab_detr[fast-eval]', or choose auto."
        ) from error
    return COCOeval_faster


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
    annotations: dict[str, Any], results: list[dict[str, Any]], repeat: int = 1
) -> Comparison:
    """Evaluate the same boxes with pycocotools and faster-coco-eval in turn.

    A time covers what :class:`BoxEvaluator` does with the detections of a data set: indexing,
    matching, counting and summarizing them.

    Args:
        annotations: in COCO's format, with whole numbers as ids.
        results: in COCO's result format.

    Raises:
        ValueError: if faster-coco-eval is not installed.
    """
    classes = {"pycocotools": COCOeval, "faster-coco-eval": find_cocoeval("faster-coco-eval")}
    comparison = Comparison({backend: [] for backend in classes}, {}, math.nan)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        # pycocotools needs these fields; many files lack them
        ground_truth.dataset = {
            "info": {},
            **annotations,
            "annotations": [
                {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0, **entry}
                for entry in annotations["annotations"]
            ],
        }
        ground_truth.createIndex()
        for _ in range(repeat):
            evaluations = []
            for backend, cocoeval in classes.items():
                # loading adds fields
                copies = [dict(entry) for entry in results]
                start = time.perf_counter()
                evaluation = cocoeval(ground_truth, ground_truth.loadRes(copies), "bbox")
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
                comparison.differences[kind] = max(
                    float(error), comparison.differences.get(kind, 0.0)
                )
    comparison.average_precision = float(official["summary"][0])
    return comparison
