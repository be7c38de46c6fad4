"""From a record of a data set to what the model takes."""

import copy
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size

from dab_detr.data.images import read_image


class DetectionMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` for detection, with images from :func:`read_image`.

    Arguments are those of :class:`detectron2.data.DatasetMapper`.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read, augment and convert one image with its objects.

        Args:
            dataset_dict: in Detectron2's standard format; it is not changed.

        Returns:
            The same with ``image``, uint8 ``(C, H, W)``, and for training ``instances`` in place
            of ``annotations``; crowds and objects that were cropped away are left out.

        Raises:
            UnreadableImage: see :func:`read_image`.
        """
        record = copy.deepcopy(dataset_dict)
        size = (record["height"], record["width"]) if {"height", "width"} <= record.keys() else None
        image = read_image(record["file_name"], self.image_format, size)
        check_image_size(record, image)  # fills in a missing size
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(pixels)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, augmented.image.shape[:2])
        return record
