"""Predictions drawn into images, with the ground truth beside them."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image
from torch import nn

# Images smaller than this are enlarged, so that labels do not cover what they name.
_LEAST_SIDE = 480


@torch.no_grad()
def draw_predictions(
    model: nn.Module,
    loader: Iterable[list[dict]],
    dataset_name: str,
    folder: str | os.PathLike,
    *,
    count: int,
    score_threshold: float = 0.5,
) -> list[Path]:
    """Write one PNG an image: predictions on the left, ground truth on the right.

    Args:
        model: takes a batch of the loader; its training mode is kept.
        loader: gives batches of Detectron2's dicts with ``file_name`` and ``image_id``.
        dataset_name: a registered data set, for class names and ground truth.
        folder: made if missing.
        count: number of images.
        score_threshold: predictions below it are left out.

    Returns:
        The files.
    """
    metadata = MetadataCatalog.get(dataset_name)
    # one colour a class where the data set has such, else one an object
    mode = ColorMode.SEGMENTATION if metadata.get("thing_colors") else ColorMode.IMAGE
    truth = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    was_training = model.training
    model.eval()
    for batch in loader:
        for record, output in zip(batch, model(batch)):
            image = read_image(record["file_name"], format="RGB")
            scale = max(1.0, _LEAST_SIDE / min(image.shape[:2]))
            instances = output["instances"].to("cpu")
            instances = instances[instances.scores >= score_threshold]
            left, right = (Visualizer(image, metadata, scale, mode) for _ in range(2))
            predicted = left.draw_instance_predictions(instances)
            wanted = right.draw_dataset_dict(truth[record["image_id"]])
            both = np.concatenate((predicted.get_image(), wanted.get_image()), axis=1)
            files.append(Path(folder) / f"{Path(record['file_name']).stem}.png")
            Image.fromarray(both).save(files[-1])
            if len(files) == count:
                model.train(was_training)
                return files
    model.train(was_training)
    return files
