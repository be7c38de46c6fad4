"""Maps a record of a data set to an input of the model."""

import copy
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import check_image_size

from dab_detr.data.images import UnreadableImage, read_image

# aspect ratio, far beyond any photograph
_NARROW = 50


class DetectionMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` for detection, with images from :func:`read_image`.

    Arguments are those of :class:`detectron2.data.DatasetMapper`.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read, augment and convert one image with its objects.

        Args:
            dataset_dict: in Detectron2's standard format; it is not changed.

        Returns:
            A copy with ``image``, uint8 ``(C, H, W)``, and for training ``instances`` instead of
            ``annotations``; crowds and objects outside the crop are left out.

        Raises:
            UnreadableImage: see :func:`read_image`; also for an image too narrow to be resized.
        """
        record = copy.deepcopy(dataset_dict)
        size = (record["height"], record["width"]) if {"height", "width"} <= record.keys() else None
        image = read_image(record["file_name"], self.image_format, size)
        check_image_size(record, image)  # fills in a missing size
        augmented = T.AugInput(image)
        try:
            transforms = self.augmentations(augmented)
        except ValueError as error:
            height, width = image.shape[:2]
            if max(height, width) < _NARROW * min(height, width):
                raise
            # after resizing, one side would have no pixel
            raise UnreadableImage(
                f"The image {record['file_name']} is {width} x {height} pixels, too narrow to be "
                "resized."
            ) from error
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(pixels)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, augmented.image.shape[:2])
        return record
