"""Checks an exported file against the model it was made from."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from dab_detr.errors import InputError
from dab_detr.exported import Detections, ExportMetadata
from dab_detr.inference.runtimes import Runtime
from dab_detr.modeling.meta_arch import DABDETR, padding_mask_of

NUM_IMAGES = 20
_BATCH = 4
# sides of the images, relative to the resize rule's short edge
_SIDES = (0.5, 1.2)
# without a rule: models for such images may have many cells, and attention squares their number
_EDGE = 160
_TIE = 1e-6


class Tolerance(NamedTuple):
    """Largest differences of a precision: boxes in pixels, scores."""

    boxes: float
    scores: float


TOLERANCES = {"fp32": Tolerance(0.1, 1e-3), "fp16": Tolerance(1.0, 1e-2)}
# int8: the share of detections above the score that are found again with this IoU and their class
CONFIDENT, OVERLAP, FOUND_AGAIN = 0.3, 0.9, 0.95


class CheckFailed(InputError):
    """An exported file computes something else than the model."""


class Comparison(NamedTuple):
    """How the detections of a file differ from the model's.

    Attributes:
        detections: number of detections that were compared.
        boxes: largest difference of a coordinate, in pixels.
        scores: largest difference of a score.
        missing: detections of the one for which the other has none of that class.
        confident: detections of the model above 0.3.
        found_again: how many of those the file has with an IoU of 0.9 and the same class.
    """

    detections: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    missing: int = 0
    confident: int = 0
    found_again: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        largest = ("boxes", "scores")
        return Comparison(
            *(
                max(x, y) if name in largest else x + y
                for name, x, y in zip(self._fields, self, other)
            )
        )

    def passes(self, precision: str) -> bool:
        """Whether the differences are within the tolerance of the precision."""
        if precision == "int8":
            return self.found_again >= FOUND_AGAIN * self.confident
        boxes, scores = TOLERANCES[precision]
        return not self.missing and self.boxes <= boxes and self.scores <= scores


def check_images(metadata: ExportMetadata, num_images: int = NUM_IMAGES) -> list[Tensor]:
    """Images of coloured blocks, each of another size: uint8 ``(3, H, W)``.

    Fine noise would average out in the backbone, so that all images would look the same.
    """
    generator = torch.Generator().manual_seed(0)
    edge = metadata.short_edge or _EDGE
    low, high = (round(edge * x) for x in _SIDES)
    images = []
    for _ in range(num_images):
        height, width = torch.randint(low, high + 1, (2,), generator=generator).tolist()
        blocks = 256 * torch.rand(1, 3, 8, 8, generator=generator)
        images.append(F.interpolate(blocks, size=(height, width))[0].to(torch.uint8))
    return images


def compare(model: DABDETR, runtime: Runtime, images: Sequence[Tensor]) -> dict[str, Comparison]:
    """Compare a file with the model it was made from.

    Args:
        model: on any device; only its evaluation mode is used.
        images: uint8 ``(C, H, W)``; they are given alone and in padded batches.

    Returns:
        The comparisons of "single images" and "padded batches".
    """
    was_training = model.training
    model.eval()
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    kinds = {"single images": [[image] for image in images], "padded batches": batches}
    try:
        return {
            name: sum((_compare_batch(model, runtime, x) for x in parts), Comparison())
            for name, parts in kinds.items()
        }
    finally:
        model.train(was_training)


def report(comparisons: dict[str, Comparison], runtime: Runtime) -> str:
    """A table of the comparisons."""
    precision = runtime.metadata.precision
    if precision == "int8":
        headers = ["", f"detections above {CONFIDENT}", "found again"]
        rows = [[name, x.confident, x.found_again] for name, x in comparisons.items()]
        allowed = ["at least", "", f"{FOUND_AGAIN:.0%}"]
    else:
        tolerance = TOLERANCES[precision]
        headers = ["", "detections", "boxes, pixels", "scores", "in one only"]
        rows = [
            [name, x.detections, f"{x.boxes:.1g}", f"{x.scores:.1g}", x.missing]
            for name, x in comparisons.items()
        ]
        allowed = ["at most", "", f"{tolerance.boxes:g}", f"{tolerance.scores:g}", 0]
    table = tabulate([*rows, allowed], headers, tablefmt="github", disable_numparse=True)
    return f"Differences from the model ({runtime.computes}):\n{table}"


def require_equal(comparisons: dict[str, Comparison], precision: str) -> None:
    """Check the tolerance.

    Raises:
        CheckFailed: if it is exceeded.
    """
    if all(x.passes(precision) for x in comparisons.values()):
        return
    advice = "" if precision == "fp32" else " Export with --precision fp32, or"
    raise CheckFailed(
        f"The exported file differs from the model by more than the tolerance of {precision} (see "
        f"the table), so it was not written.{advice or ' Write it all the same with'} --no-check"
        f"{' to write it all the same.' if advice else '.'}"
    )


@torch.no_grad()
def all_predictions(model: DABDETR, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What the model says of all queries and classes in a batch.

    Args:
        model: in evaluation mode.
        images: uint8 ``(C, H, W)``.

    Returns:
        Scores ``(B, Q, K)`` and boxes as xyxy in 0..1 ``(B, Q, 4)``, on the CPU.
    """
    inputs = model.preprocess_image([{"image": image} for image in images])
    class_logits, box_logits = model.core(inputs.tensor, padding_mask_of(inputs))
    boxes_xyxy = box_convert(box_logits.float().sigmoid(), "cxcywh", "xyxy")
    return class_logits.float().sigmoid().cpu(), boxes_xyxy.cpu()


def assignment_tolerance(precision: str) -> Tolerance:
    """The tolerance for :func:`compare_image`; in int8 nothing is near enough for it to matter."""
    return TOLERANCES.get(precision, TOLERANCES["fp16"])


def _compare_batch(model: DABDETR, runtime: Runtime, images: Sequence[Tensor]) -> Comparison:
    total = Comparison()
    tolerance = assignment_tolerance(runtime.metadata.precision)
    found = runtime([image.numpy() for image in images])
    for of_image, scores, boxes_xyxy, image in zip(found, *all_predictions(model, images), images):
        height, width = image.shape[1:]
        boxes_xyxy = boxes_xyxy * torch.tensor([width, height] * 2)
        total += compare_image(of_image, scores.numpy(), boxes_xyxy.numpy(), tolerance)
    return total


def compare_image(
    found: Detections, scores: np.ndarray, boxes_xyxy: np.ndarray, tolerance: Tolerance
) -> Comparison:
    """Compare the detections of a file with all predictions of the model in one image.

    Pairs of query and class are compared, not ranks: rounding exchanges detections of almost equal
    scores, also with those that are not among the best any more.

    Args:
        found: of the file.
        scores: of the model, ``(Q, K)``. boxes_xyxy: in pixels, ``(Q, 4)``.
        tolerance: weighs boxes and scores when detections are assigned to pairs.
    """
    count = len(found.scores)
    boxes_difference = scores_difference = 0.0
    missing = 0
    left_out, selected = -np.inf, np.inf
    for label in range(scores.shape[1]):
        of_file = np.flatnonzero(found.labels == label)
        boxes = np.abs(found.boxes_xyxy[of_file, None] - boxes_xyxy[None]).max(-1)
        of_scores = np.abs(found.scores[of_file, None] - scores[None, :, label])
        cost = np.nan_to_num(boxes / tolerance.boxes + of_scores / tolerance.scores, nan=np.inf)
        rows, queries = linear_sum_assignment(np.minimum(cost, 1e12))
        missing += len(of_file) - len(rows)
        if len(rows):
            boxes_difference = max(boxes_difference, _largest(boxes[rows, queries]))
            scores_difference = max(scores_difference, _largest(of_scores[rows, queries]))
        others = np.delete(scores[:, label], queries)
        left_out = max(left_out, others.max(initial=-np.inf))
        selected = min(selected, scores[queries, label].min(initial=np.inf))
    missing += int((found.labels < 0).sum() + (found.labels >= scores.shape[1]).sum())
    # a better pair may be left out only if rounding could have exchanged it with a selected one
    if left_out > selected + 2 * scores_difference + _TIE:
        missing += 1
    confident, again = _found_again(found, scores, boxes_xyxy, count)
    return Comparison(count, boxes_difference, scores_difference, missing, confident, again)


def _largest(differences: np.ndarray) -> float:
    """NaN counts as infinite."""
    return float(np.nan_to_num(differences, nan=np.inf).max())


def _found_again(
    found: Detections, scores: np.ndarray, boxes_xyxy: np.ndarray, count: int
) -> tuple[int, int]:
    """Numbers of confident detections of the model, and of those that the file has, too."""
    queries, labels = np.nonzero(scores > CONFIDENT)
    kept = np.argsort(-scores[queries, labels], kind="stable")[:count]
    queries, labels = queries[kept], labels[kept]
    if not len(kept):
        return 0, 0
    overlap = box_iou(
        torch.from_numpy(boxes_xyxy[queries]), torch.from_numpy(found.boxes_xyxy)
    ).numpy()
    same = (overlap >= OVERLAP) & (labels[:, None] == found.labels)
    rows, columns = linear_sum_assignment(same, maximize=True)
    return len(kept), int(same[rows, columns].sum())
