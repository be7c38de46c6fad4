#!/usr/bin/env python
"""Evaluate boxes with pycocotools and faster-coco-eval: compare their numbers and their time."""

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from dab_detr.data.coco import class_names, coco_records, read_coco
from dab_detr.data.records import check_records
from dab_detr.errors import InputError
from dab_detr.evaluation.coco_evaluator import find_cocoeval
from dab_detr.evaluation.ground_truth import GroundTruth

# tolerance for numbers in 0..1; rounding errors of float64 are far below it
LIMIT = 1e-11
_FIELDS = ("image_id", "category_id", "bbox", "score")


@dataclass
class Comparison:
    """The result of :func:`compare_backends`.

    Attributes:
        seconds: of each repetition, by backend.
        differences: the largest one by kind of number; the numbers are in 0..1, or -1 if undefined.
        average_precision: COCO's AP of the boxes, 0..1, by pycocotools.
    """

    seconds: dict[str, list[float]]
    differences: dict[str, float]
    average_precision: float


def compare_backends(
    truth: GroundTruth, results: list[dict[str, Any]], repeat: int = 1
) -> Comparison:
    """Evaluate the same boxes alternately with pycocotools and faster-coco-eval.

    The time covers what an evaluator does with the detections of a data set: indexing, matching,
    accumulating and summarizing them.

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
                    # COCO's twelve metrics; faster-coco-eval has more
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Ends with 0 if all numbers are equal, with 1 if not or if a file is wrong.",
    )
    parser.add_argument("annotations", nargs="?", metavar="ANNOTATIONS.json")
    parser.add_argument("results", nargs="?", metavar="RESULTS.json")
    parser.add_argument(
        "--synthetic",
        type=int,
        metavar="IMAGES",
        help="instead of files: a random set of 80 classes with 100 detections per image",
    )
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="number of repetitions, default 3"
    )
    args = parser.parse_args(arguments)
    given = [path for path in (args.annotations, args.results) if path is not None]
    if len(given) != (2 if args.synthetic is None else 0):
        parser.error("give either ANNOTATIONS.json and RESULTS.json or --synthetic IMAGES.")
    if args.repeat < 1 or (args.synthetic is not None and args.synthetic < 3):
        parser.error("--repeat has to be at least 1 and --synthetic at least 3.")
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = given
            if args.synthetic is not None:
                files = Path(folder, "annotations.json"), Path(folder, "results.json")
                for path, content in zip(files, synthetic(args.synthetic)):
                    path.write_text(json.dumps(content))
            truth, classes = read_truth(files[0])
            results = read_results(files[1], truth, classes)
        comparison = compare_backends(truth, results, args.repeat)
    except (InputError, ValueError) as error:
        print(f"compare_evaluators.py: {error}", file=sys.stderr)
        return 1
    kind, difference = max(comparison.differences.items(), key=lambda item: item[1])
    print(
        f"{len(truth.coco.imgs)} images, {len(classes)} classes, {len(truth.coco.anns)} objects, "
        f"{len(results)} detections: "
        f"AP {100 * comparison.average_precision:.4f}, largest difference {difference:.1e}\n"
        f"{_table(comparison)}"
    )
    if difference > LIMIT:
        print(
            f"compare_evaluators.py: The backends differ by {difference:.1e} in {kind}.",
            file=sys.stderr,
        )
    return int(difference > LIMIT)


def _table(comparison: Comparison) -> str:
    medians = {backend: np.median(times) for backend, times in comparison.seconds.items()}
    rows = [
        [
            backend,
            f"{medians[backend]:.2f}",
            f"{min(times):.2f} to {max(times):.2f}",
            f"{medians['pycocotools'] / medians[backend]:.1f}",
        ]
        for backend, times in comparison.seconds.items()
    ]
    repeat = len(comparison.seconds["pycocotools"])
    headers = ["backend", f"seconds, median of {repeat}", "fastest to slowest", "times as fast"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def read_truth(path: str | Path) -> tuple[GroundTruth, dict[int, int]]:
    """The ground truth of a file in COCO's format, and the class index of each category id."""
    content = read_coco(path)
    if "annotations" not in content:
        raise InputError(f"The annotations {path} have no list 'annotations'.")
    classes = {number: index for index, number in enumerate(class_names(content))}
    records, _ = check_records(str(path), coco_records(content, ""), len(classes))
    return GroundTruth(records, len(classes)), classes


def read_results(
    path: str | Path, truth: GroundTruth, classes: dict[int, int]
) -> list[dict[str, Any]]:
    """The detections of a COCO result file, with class indices in place of category ids."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The results {path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, list) or not content:
        raise InputError(f"The results {path} are not a list of detections.")
    for index, entry in enumerate(content):
        if not _is_detection(entry):
            raise InputError(
                f"Entry {index} of {path} is not a detection: it needs an image_id and a "
                "category_id (whole numbers), a bbox of four numbers and a score."
            )
    for index, entry in enumerate(content):
        try:
            truth.image_number(entry["image_id"])
        except ValueError as error:
            raise InputError(
                f"Entry {index} of {path} has the image_id {entry['image_id']}, which is not in "
                "the annotations."
            ) from error
        if entry["category_id"] not in classes:
            raise InputError(
                f"Entry {index} of {path} has the category_id {entry['category_id']}, which is "
                "not in the annotations."
            )
    return [{**entry, "category_id": classes[entry["category_id"]]} for entry in content]


def _is_detection(entry: Any) -> bool:
    if not isinstance(entry, dict) or not entry.keys() >= set(_FIELDS):
        return False
    ids, box, score = (entry["image_id"], entry["category_id"]), entry["bbox"], entry["score"]
    return (
        all(isinstance(number, int) for number in ids)
        and isinstance(box, list)
        and len(box) == 4
        and all(isinstance(number, int | float) for number in (*box, score))
    )


def synthetic(
    images: int, *, classes: int = 80, detections: int = 100, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A random data set similar to COCO, with its difficult cases.

    It has category ids with gaps, crowds, objects of all sizes, duplicate detections, equal scores,
    images without objects and without detections, a class without objects (the last) and one
    without detections (the first).

    Args:
        images: of 640x480 pixels and with 7 objects on average.
        classes: at least 3.
        detections: per image.

    Returns:
        Annotations and results in COCO's formats.
    """
    rng = np.random.default_rng(seed)
    categories = np.cumsum(rng.integers(1, 4, classes)).tolist()
    image_ids = np.cumsum(rng.integers(1, 200, images)).tolist()
    annotations, results = [], []
    for index, image_id in enumerate(image_ids):
        count = 0 if index % 20 == 1 else 1 + rng.poisson(6)
        boxes, labels = _boxes(rng, count), rng.integers(0, classes - 1, count)
        for box, label, crowd in zip(boxes.tolist(), labels, rng.random(count) < 0.05):
            annotations.append(
                {
                    "id": len(annotations) + (900_100_000_000 if crowd else 1),
                    "image_id": image_id,
                    "category_id": categories[label],
                    "bbox": box,
                    # a segmentation is smaller than its box
                    "area": box[2] * box[3] * rng.uniform(0.4, 1),
                    "iscrowd": int(crowd),
                }
            )
        if index % 20 == 2:
            continue
        found, found_labels = _boxes(rng, detections), rng.integers(1, classes, detections)
        scores = rng.beta(1, 6, detections)
        if count:
            # half of the detections are near an object
            source = rng.integers(0, count, detections // 2)
            near = np.arange(len(source))
            blur = rng.choice([0.01, 0.05, 0.2], (len(source), 1)) * boxes[source][:, [2, 3, 2, 3]]
            found[near] = np.abs(rng.normal(boxes[source], blur)).round(2)
            found_labels[near] = np.maximum(labels[source], 1)
            scores[near] = rng.beta(2, 3, len(source))
        # the last detections repeat the first ones
        copies = detections // 20
        for row in (*range(detections - copies), *range(copies)):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": categories[found_labels[row]],
                    "bbox": found[row].tolist(),
                    "score": round(float(scores[row]), 3),
                }
            )
    content = {
        "images": [
            {"id": number, "file_name": f"{number:012}.jpg", "width": 640, "height": 480}
            for number in image_ids
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in categories],
        "annotations": annotations,
    }
    return content, results


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (count, 4), xywh in pixels, with sides of 8 to 400 pixels."""
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    return np.concatenate((rng.random((count, 2)) * ((640, 480) - sides), sides), axis=1).round(2)


if __name__ == "__main__":
    sys.exit(main())
