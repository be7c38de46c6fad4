"""Draws training samples as the model gets them."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from omegaconf import DictConfig
from PIL import Image

from dab_detr.config import build, copy_config
from dab_detr.data.datasets import dataset_names
from dab_detr.data.loader import build_train_loader
from dab_detr.data.stream import UnreadableImages
from dab_detr.data.validation import check_datasets, prepare_training_records
from dab_detr.visualization.labels import LabelVisualizer
from dab_detr.visualization.predictions import drawing_scale


def draw_samples(cfg: DictConfig, folder: str | os.PathLike, *, count: int) -> list[Path]:
    """Draw the first training images, after augmentation, with their boxes and classes.

    Args:
        cfg: a complete config; a training with the same ``train.seed`` uses the same images.
        folder: made if missing.
        count: number of images.

    Returns:
        The PNG files, in the order of training.

    Raises:
        InputError: if the data set is not valid.
    """
    check_datasets(cfg, ("train",))
    limit = cfg.train.max_unreadable_images
    name = dataset_names(cfg, "train")[0]
    records = build(cfg, "dataloader.train.dataset")
    records = prepare_training_records(cfg, records)
    image_format = cfg.dataloader.train.mapper.image_format
    cfg = copy_config(cfg)
    cfg.dataloader.train.num_workers = 0
    loader = build_train_loader(cfg, records, max(cfg.train.seed, 0), 0)
    metadata = MetadataCatalog.get(name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = []
    for number, sample in enumerate(islice(_samples(UnreadableImages(loader, limit)), count)):
        image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), image_format)
        visualizer = LabelVisualizer(image, metadata, drawing_scale(image))
        objects = sample["instances"]
        visualizer.overlay_instances(
            boxes=objects.gt_boxes,
            labels=[visualizer.class_names[index] for index in objects.gt_classes],
        )
        file = Path(folder) / f"{number:04d}_{Path(sample['file_name']).stem}.png"
        Image.fromarray(visualizer.get_output().get_image()).save(file)
        files.append(file)
    return files


def _samples(loader: UnreadableImages) -> Iterator[dict]:
    for batch in loader:
        yield from batch
