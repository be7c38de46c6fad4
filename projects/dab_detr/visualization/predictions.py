"""Draws predictions and, beside them, the ground truth."""

import os
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count as numbers_from
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode
from matplotlib.colors import hsv_to_rgb
from PIL import Image
from torch import nn

from dab_detr.data.images import read_image
from dab_detr.visualization.labels import LabelVisualizer

# pixels: small images are enlarged to the first number, unless their long side would exceed the
# second; matplotlib draws up to 65535
_LEAST_SIDE = 480
_MOST_ENLARGED = 4096
_MOST_SIDE = 60000


def drawing_scale(image: np.ndarray) -> float:
    """Scale factor for small images, so that labels do not cover their objects."""
    short, long = sorted(image.shape[:2])
    return min(max(1.0, _LEAST_SIDE / short), max(1.0, _MOST_ENLARGED / long), _MOST_SIDE / long)


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: Sequence[str]
) -> np.ndarray:
    """Draw boxes with class and score, each class in its own colour.

    Args:
        image: uint8 RGB ``(H, W, 3)``.
        instances: on any device, with ``pred_boxes``, ``pred_classes`` and, if known, ``scores``.
        class_names: of all classes.

    Returns:
        uint8 RGB; a small image is enlarged by :func:`drawing_scale`.
    """
    metadata = Metadata().set(thing_classes=list(class_names))
    visualizer = LabelVisualizer(image, metadata, drawing_scale(image))
    classes = instances.pred_classes.tolist()
    labels = [visualizer.class_names[index] for index in classes]
    if instances.has("scores"):
        labels = [f"{name} {score:.0%}" for name, score in zip(labels, instances.scores.tolist())]
    visualizer.overlay_instances(
        boxes=instances.pred_boxes.to("cpu"),
        labels=labels,
        # steps of the golden ratio keep the hues of any number of classes apart
        assigned_colors=[hsv_to_rgb((index * 0.618034 % 1, 0.85, 0.95)) for index in classes],
    )
    return visualizer.get_output().get_image()


def draw_predictions(
    model: nn.Module,
    loader: Iterable[list[dict]],
    dataset_name: str,
    folder: str | os.PathLike,
    *,
    count: int,
    score_threshold: float = 0.5,
) -> list[Path]:
    """Write one PNG per image into a folder, which is made if missing; see :func:`predictions`.

    Returns:
        The written files.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for name, image in predictions(
        model, loader, dataset_name, count=count, score_threshold=score_threshold
    ):
        files.append(Path(folder) / f"{name}.png")
        Image.fromarray(image).save(files[-1])
    return files


def predictions(
    model: nn.Module,
    loader: Iterable[list[dict]],
    dataset_name: str,
    *,
    count: int,
    score_threshold: float = 0.5,
) -> list[tuple[str, np.ndarray]]:
    """Draw each image with its predictions on the left and its ground truth on the right.

    Args:
        model: called with batches of the loader; its training mode is restored.
        loader: batches of Detectron2's dicts with ``file_name``, ``image_id`` and size.
        dataset_name: a registered data set, for class names and ground truth.
        count: number of images.
        score_threshold: predictions below it are left out.

    Returns:
        For each of the loader's first ``count`` images the file name without suffix (with a number
        appended if the name occurs again), and the picture, uint8 RGB ``(H, W, 3)``.
    """
    metadata = MetadataCatalog.get(dataset_name)
    # one colour per class if the data set has colours, else one per object
    mode = ColorMode.SEGMENTATION if metadata.get("thing_colors") else ColorMode.IMAGE
    truth = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
    images: dict[str, np.ndarray] = {}
    with closing(_predict(model, loader)) as outputs:
        for record, instances in islice(outputs, count):
            image = read_image(record["file_name"], size=(record["height"], record["width"]))
            scale = drawing_scale(image)
            left, right = (LabelVisualizer(image, metadata, scale, mode) for _ in range(2))
            shown = instances.scores >= score_threshold
            if names := left.class_names:
                # a model may have more classes than the data set
                shown &= instances.pred_classes < len(names)
            instances = instances[shown]
            predicted = left.draw_instance_predictions(instances)
            wanted = right.draw_dataset_dict(truth[record["image_id"]])
            both = np.concatenate((predicted.get_image(), wanted.get_image()), axis=1)
            images[unused_name(Path(record["file_name"]).stem, images)] = both
    return list(images.items())


def unused_name(stem: str, used: Container[str]) -> str:
    """A name that is not used yet: "NAME", "NAME-2", "NAME-3" and so on."""
    names = (stem if number == 1 else f"{stem}-{number}" for number in numbers_from(1))
    return next(name for name in names if name not in used)


@torch.no_grad()
def _predict(model: nn.Module, loader: Iterable[list[dict]]) -> Iterator[tuple[dict, Instances]]:
    """Yields each image's record and detections, with the model in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        for batch in loader:
            for record, output in zip(batch, model(batch)):
                yield record, output["instances"].to("cpu")
    finally:
        model.train(was_training)
