"""What the page computes: detections of an image, and what is shown of them."""

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Boxes, Instances
from PIL import Image

from dab_detr.errors import InputError
from dab_detr.inference.predictor import Predictor
from dab_detr.inference.results import PredictedInstances
from dab_detr.visualization.predictions import draw_detections

COLUMNS = ("class", "score", "x0", "y0", "x1", "y1")
# more boxes hide the image, and take seconds to draw
MOST_SHOWN = 100
# pixels: of the picture that is sent to the browser whenever a slider moves
_MOST_SIDE = 1280


class Found(NamedTuple):
    """What a session keeps of its image, so that nothing is computed again.

    Attributes:
        name: of the file.
        picture: uint8 RGB ``(h, w, 3)``, the image, reduced if it is large.
        instances: all detections, in pixels of the image, with every decoder layer's boxes if the
            model has them: see :meth:`Predictor.detect_layers`.
    """

    name: str
    picture: np.ndarray
    instances: PredictedInstances


class View(NamedTuple):
    """What is shown of a session's image.

    Attributes:
        picture: with boxes.
        rows: for each box the values of COLUMNS; coordinates in pixels of the image, "" for the
            score of an anchor.
        summary: one sentence.
    """

    picture: Image.Image
    rows: list[list]
    summary: str


class Detector:
    """Detects in the images of all sessions, one at a time, and draws.

    Args:
        predictor: computes with one image at a time.
    """

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._one_at_a_time = threading.Lock()
        self.num_layers = predictor.num_layers

    def find(self, file: str | Path) -> Found:
        """Detect objects in an image file.

        Raises:
            InputError: if it cannot be read; the message has the file's name without its folder.
        """
        name = Path(file).name
        try:
            image = self._predictor.prepare(str(file))
        except InputError as error:
            raise InputError(str(error).replace(str(file), name)) from error
        everything = self._predictor.selection(score_threshold=0)
        with self._one_at_a_time:
            if self.num_layers:
                instances = self._predictor.detect_layers(image, everything)
            else:
                (instances,) = self._predictor.detect([image], everything)
        rgb = convert_image_to_rgb(image.pixels, self._predictor.image_format)
        picture = Image.fromarray(rgb)
        picture.thumbnail((_MOST_SIDE, _MOST_SIDE))
        return Found(name, np.asarray(picture), instances)

    def view(self, found: Found, score_threshold: float, layer: int | None = None) -> View:
        """Show detections, without computing them again.

        Args:
            score_threshold: the lowest score of the last layer, 0 to 1.
            layer: whose boxes and scores are shown, 0 for the anchors; None: the last. Without
                effect for exported files.
        """
        selection = self._predictor.selection(score_threshold=score_threshold)
        selected = selection(found.instances)
        shown = selected[:MOST_SHOWN]
        boxes, scores = _of_layer(shown, self.num_layers if layer is None else layer)
        drawn = Instances(
            found.picture.shape[:2], pred_boxes=boxes.clone(), pred_classes=shown.pred_classes
        )
        height, width = shown.image_size
        drawn.pred_boxes.scale(found.picture.shape[1] / width, found.picture.shape[0] / height)
        if scores is not None:
            drawn.scores = scores
        picture = Image.fromarray(draw_detections(found.picture, drawn, shown.class_names))
        values = [""] * len(shown) if scores is None else [round(x, 3) for x in scores.tolist()]
        rows = [
            [name, score, *(round(x, 1) for x in box)]
            for name, score, box in zip(shown.names, values, boxes.tensor.tolist())
        ]
        return View(picture, rows, _summary(found.name, shown, len(selected)))


def first_layer(instances: PredictedInstances, num_layers: int) -> int:
    """The first layer that can be shown: 0 if the queries have anchors, else 1."""
    return num_layers + 1 - instances.layer_boxes.shape[1]


def _of_layer(shown: PredictedInstances, layer: int) -> tuple[Boxes, "np.ndarray | None"]:
    """Boxes and scores of a layer; anchors have no scores."""
    if not shown.has("layer_boxes"):
        return shown.pred_boxes, shown.scores
    num_layers = shown.layer_scores.shape[1]
    # from the end: there may be no anchors in front
    index = layer - num_layers - 1
    scores = shown.layer_scores[:, index] if layer else None
    return Boxes(shown.layer_boxes[:, index]), scores


def _summary(name: str, shown: PredictedInstances, count: int) -> str:
    height, width = shown.image_size
    objects = "1 object" if count == 1 else f"{count} objects"
    best = f"the best {len(shown)} of " if count > len(shown) else ""
    return f"{name}, {width} x {height} pixels: {best}{objects}."
