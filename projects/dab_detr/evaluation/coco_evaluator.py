"""COCO's evaluation of boxes, with faster-coco-eval if it is installed: the same metrics."""

import contextlib
import io
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools.cocoeval import COCOeval

from dab_detr.console import DETAIL
from dab_detr.data.catalog import checked_dataset
from dab_detr.evaluation.ground_truth import GroundTruth
from dab_detr.files import atomic_write_text

BACKENDS = ("faster-coco-eval", "pycocotools")
RESULTS_FILE = "coco_instances_results.json"
# COCO's own limit of detections per image
_MAX_DETECTIONS = 100

logger = logging.getLogger(__name__)


class BoxEvaluator(DatasetEvaluator):
    """COCO's average precision of boxes on any data set of Detectron2's catalog.

    Both libraries give the metrics of COCO's own code, up to the rounding of float64, if boxes and
    scores are finite. The ground truth is the checked records of the data set
    (:func:`~dab_detr.data.catalog.checked_dataset`), with any ids; predictions of classes that it
    does not have are ignored.

    Args:
        dataset_name: name in Detectron2's catalog.
        distributed: gather the predictions of all processes; else only this process's are used.
        output_dir: folder for ``coco_instances_results.json``, the predictions in COCO's result
            format with the ids of the data set; None: no file.
        backend: ``"faster-coco-eval"``, ``"pycocotools"``, or ``"auto"`` for the first of them that
            is installed.
        max_dets_per_image: number of detections per image and class that count, the best ones;
            None: 100, as for COCO's published numbers.

    Raises:
        ValueError: for another backend, or one that is not installed.
        InputError: if the data set is not registered, cannot be loaded or is wrong.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | None = None,
        backend: str = "auto",
        max_dets_per_image: int | None = None,
    ):
        self._cocoeval = find_cocoeval(backend)
        self._dataset = checked_dataset(dataset_name)
        self._classes = self._dataset.classes
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_detections = max_dets_per_image or _MAX_DETECTIONS
        self.reset()

    def reset(self) -> None:
        self._predictions: list[tuple[Any, list[dict]]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Store the detections of a batch.

        Args:
            inputs: dicts with ``image_id``. outputs: dicts with ``instances``, which have
                ``pred_boxes`` (absolute xyxy), ``scores`` and ``pred_classes``.
        """
        for image, output in zip(inputs, outputs):
            found = output["instances"].to("cpu")
            # masks and keypoints are not evaluated
            found = Instances(
                found.image_size,
                **{name: found.get(name) for name in ("pred_boxes", "scores", "pred_classes")},
            )
            image_id = image["image_id"]
            self._predictions.append((image_id, instances_to_coco_json(found, image_id)))

    def evaluate(self, img_ids: Sequence[int | str] | None = None) -> dict[str, dict[str, float]]:
        """Evaluate the stored detections.

        Args:
            img_ids: ids of the images to evaluate; None: all.

        Returns:
            ``{"bbox": {"AP": .., "AP50", "AP75", "APs", "APm", "APl", "AP-<class>"}}`` in per cent,
            NaN if there are no objects of that kind, or no predictions at all. Empty on processes
            other than 0, without images, and if the data set has no annotations.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return {}
            predictions = [entry for part in parts for entry in part]
        if not predictions:
            logger.warning("There were no images to evaluate.")
            return {}
        results = self._known([result for _, found in predictions for result in found])
        if self._output_dir:
            self._write(results)
        truth = GroundTruth(self._dataset.records, len(self._classes))
        if not truth.annotated:
            logger.info("The data set has no annotations: predictions are not evaluated.")
            return {}
        metrics = self._metrics(truth, results, img_ids)
        headline = {name: metrics[name] for name in _SUMMARY}
        logger.info(f"Evaluation of boxes:\n{create_small_table(headline)}", extra=DETAIL)
        return {"bbox": metrics}

    def _known(self, results: list[dict]) -> list[dict]:
        """The results of classes that the data set has."""
        count = len(self._classes)
        known = [result for result in results if result["category_id"] < count]
        if len(known) < len(results):
            logger.warning(
                f"{len(results) - len(known)} of {len(results)} predictions are of classes that "
                f"{self._dataset.name!r} with its {count} classes does not have; they are ignored."
            )
        return known

    def _write(self, results: list[dict]) -> None:
        metadata = MetadataCatalog.get(self._dataset.name)
        mapping = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        ids = {index: number for number, index in mapping.items()}
        content = json.dumps(
            [{**r, "category_id": ids.get(r["category_id"], r["category_id"])} for r in results]
        )
        folder = Path(self._output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / RESULTS_FILE, content)
        logger.info(f"The predictions are in {folder / RESULTS_FILE}.", extra=DETAIL)

    def _metrics(
        self, truth: GroundTruth, results: list[dict], img_ids: Sequence[int | str] | None
    ) -> dict[str, float]:
        if not results:
            # COCO's code does not accept an empty list
            logger.warning("There were no predictions.")
            return dict.fromkeys(_SUMMARY, math.nan)
        faster = {} if self._cocoeval is COCOeval else {"print_function": print}
        evaluation = self._cocoeval(truth.coco, truth.detections(results), "bbox", **faster)
        evaluation.params.maxDets = [1, 10, self._max_detections]
        if img_ids is not None:
            evaluation.params.imgIds = [truth.image_number(number) for number in img_ids]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            evaluation.evaluate()
            evaluation.accumulate()
            if self._max_detections == _MAX_DETECTIONS:
                # prints COCO's twelve lines, which are for this limit only
                evaluation.summarize()
        logger.info(f"COCO's output:\n{printed.getvalue()}", extra=DETAIL)
        # thresholds 0.5, 0.55 .., recalls, classes, areas (all, s, m, l), limits of detections
        precision = evaluation.eval["precision"][..., -1]
        metrics = {name: _mean(precision[where]) for name, where in _SUMMARY.items()}
        for index, name in enumerate(self._classes):
            metrics[f"AP-{name}"] = _mean(precision[:, :, index, 0])
        return metrics


_ALL = slice(None)
# the precisions over which each metric is a mean
_SUMMARY = {
    "AP": (_ALL, _ALL, _ALL, 0),
    "AP50": (0, _ALL, _ALL, 0),
    "AP75": (5, _ALL, _ALL, 0),
    "APs": (_ALL, _ALL, _ALL, 1),
    "APm": (_ALL, _ALL, _ALL, 2),
    "APl": (_ALL, _ALL, _ALL, 3),
}


def _mean(precision: np.ndarray) -> float:
    """Mean of the defined values in per cent; NaN if there are none."""
    existing = precision[precision > -1]
    return float(existing.mean() * 100) if existing.size else math.nan


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
