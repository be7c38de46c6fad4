"""Pascal VOC's own metric with Detectron2's evaluator, also for incomplete annotations."""

import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.utils import comm

from dab_detr.data.voc import VOCImage, voc_images
from dab_detr.errors import InputError


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's evaluator for files that may lack ``pose``, ``truncated`` or ``difficult``, or
    have decimal coordinates, which are rounded.

    Args:
        dataset_name: registered by Detectron2's ``register_pascal_voc``.

    Raises:
        InputError: naming the annotation file that is wrong.
    """

    def __init__(self, dataset_name: str):
        super().__init__(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        self._images = list(voc_images(metadata.dirname, metadata.split, metadata.thing_classes))

    def evaluate(self) -> dict[str, Any] | None:
        """``{"bbox": {"AP", "AP50", "AP75"}}`` in per cent; None on processes other than 0."""
        if not comm.is_main_process():
            return super().evaluate()
        with tempfile.TemporaryDirectory(prefix="voc_") as folder:
            for image in self._images:
                (Path(folder) / f"{image.name}.xml").write_bytes(_complete(image))
            names = Path(folder) / "images.txt"
            names.write_text("".join(f"{image.name}\n" for image in self._images))
            self._anno_file_template = f"{folder}/{{}}.xml"
            self._image_set_path = str(names)
            try:
                return super().evaluate()
            finally:
                # it caches files by name
                parse_rec.cache_clear()


def _complete(image: VOCImage) -> bytes:
    """An annotation file with all fields that Detectron2's reader needs."""
    root = ET.Element("annotation")
    for found in image.objects:
        node = ET.SubElement(root, "object")
        values = {
            "name": found.name,
            "pose": "Unspecified",
            "truncated": "0",
            "difficult": str(int(found.difficult)),
        }
        for tag, text in values.items():
            ET.SubElement(node, tag).text = text
        box = ET.SubElement(node, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), found.box):
            ET.SubElement(box, tag).text = str(round(value))
    return ET.tostring(root)


def check_voc_evaluator(evaluator: DatasetEvaluator) -> None:
    """Check that Detectron2's own VOC evaluator can read its files, which it only reads at the end.

    Raises:
        InputError: naming the first file that it cannot read.
    """
    if type(evaluator) is not PascalVOCDetectionEvaluator:
        return
    metadata = MetadataCatalog.get(evaluator._dataset_name)
    for image in voc_images(metadata.dirname, metadata.split, metadata.thing_classes):
        try:
            parse_rec(evaluator._anno_file_template.format(image.name))
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(
                f"Detectron2's PascalVOCDetectionEvaluator cannot read {image.path}: it needs "
                "pose, truncated, difficult and whole coordinates. Use "
                "dab_detr.evaluation.voc_evaluator.VOCEvaluator, which does not."
            ) from error
