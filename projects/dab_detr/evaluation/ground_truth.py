"""The ground truth of a data set, for COCO's evaluation code."""

import contextlib
import io
from typing import Any

from pycocotools.coco import COCO

from dab_detr.data.boxes import xywh


class GroundTruth:
    """The objects of a data set, with images, objects and classes numbered from 1.

    COCO's code treats an object with id 0 as unmatched, and its libraries store ids as float64, so
    the data set's own ids are not used. The numbers follow the order of the records, as COCO's code
    orders equal scores by the order of the images.

    Args:
        records: of a :class:`~dab_detr.data.catalog.CheckedDataset`.
        num_classes: K.

    Attributes:
        coco: input of ``COCOeval``. annotated: False if the data set has no annotations.
    """

    def __init__(self, records: list[dict[str, Any]], num_classes: int):
        self.annotated = any("annotations" in record for record in records)
        self._numbers = {record["image_id"]: i for i, record in enumerate(records, 1)}
        annotations: list[dict] = []
        for record in records:
            for annotation in record.get("annotations", ()):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": self._numbers[record["image_id"]],
                        "category_id": annotation["category_id"] + 1,
                        "bbox": xywh(annotation["bbox"], annotation["bbox_mode"]),
                        "area": annotation["area"],
                        "iscrowd": annotation["iscrowd"],
                    }
                )
        self.coco = COCO()
        self.coco.dataset = {
            # some versions of pycocotools need it
            "info": {},
            "images": [
                {"id": self._numbers[record["image_id"]]}
                | {key: record[key] for key in ("file_name", "height", "width")}
                for record in records
            ],
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": str(i)} for i in range(num_classes)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()

    def image_number(self, image_id: int | str) -> int:
        """The number of an image.

        Raises:
            ValueError: if there is no such image.
        """
        if image_id not in self._numbers:
            raise ValueError(f"There is no image {image_id!r} in the test data.")
        return self._numbers[image_id]

    def detections(self, results: list[dict[str, Any]]) -> COCO:
        """Detections for ``COCOeval``.

        Args:
            results: at least one; with ``image_id`` of the data set, ``category_id`` in 0..K-1,
                ``bbox`` (xywh) and ``score``.
        """
        numbered = [
            {
                "image_id": self.image_number(result["image_id"]),
                "category_id": result["category_id"] + 1,
                "bbox": result["bbox"],
                "score": result["score"],
            }
            for result in results
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            return self.coco.loadRes(numbered)
