"""The result of a prediction: Detectron2's ``Instances``, and what can be made of it."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image

from dab_detr.errors import InputError
from dab_detr.files import atomic_write
from dab_detr.inference.inputs import read_pixels
from dab_detr.visualization.predictions import draw_detections


class PredictedInstances(Instances):
    """Detections in one image, best first, on the CPU.

    Detectron2's ``Instances`` with ``pred_boxes`` (absolute xyxy in pixels of the image),
    ``scores`` (0..1) and ``pred_classes``, and the names of the classes.

    Args:
        image_size: (height, width).
        class_names: of all classes of the model.
        **fields: as for ``Instances``.
    """

    def __init__(self, image_size: tuple[int, int], class_names: Sequence[str], **fields: Any):
        self._class_names = tuple(class_names)
        super().__init__(image_size, **fields)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes of the model."""
        return self._class_names

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self._class_names[index] for index in self.pred_classes.tolist()]

    def to(self, *args: Any, **kwargs: Any) -> "PredictedInstances":
        return self._with_names(super().to(*args, **kwargs))

    def __getitem__(self, item: Any) -> "PredictedInstances":
        return self._with_names(super().__getitem__(item))

    def _with_names(self, instances: Instances) -> "PredictedInstances":
        return PredictedInstances(instances.image_size, self._class_names, **instances.get_fields())

    def coco_records(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """The detections in COCO's result format.

        Returns:
            One dict per detection: ``image_id``, ``category_id`` (see :func:`category_ids`),
            ``bbox`` (x, y, width, height in pixels) and ``score``.
        """
        ids = category_ids(self._class_names)
        records = instances_to_coco_json(self.to("cpu"), image_id)
        return [{**x, "category_id": ids[x["category_id"]]} for x in records]

    def to_supervision(self) -> Any:
        """The detections as ``supervision.Detections``, with ``data["class_name"]``.

        Raises:
            InputError: without supervision, an optional dependency of this package.
        """
        try:
            import supervision
        except ImportError as error:
            raise InputError(
                "to_supervision() needs supervision: pip install supervision."
            ) from error
        return supervision.Detections(
            xyxy=self.pred_boxes.tensor.numpy(force=True),
            confidence=self.scores.numpy(force=True),
            class_id=self.pred_classes.numpy(force=True),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(self, image: Any, *, channels: str = "RGB") -> Image.Image:
        """Draw the boxes with class and score on the image that they were found in.

        Args:
            image: of any kind that :class:`Predictor` takes.
            channels: as for :meth:`Predictor.__call__`.

        Returns:
            A picture of the image's size; an image whose shorter side has less than 480 pixels is
            enlarged.

        Raises:
            InputError: for an image of another size.
        """
        pixels = read_pixels(image, channels=channels)
        if pixels.shape[:2] != tuple(self.image_size):
            sizes = (f"{width} x {height}" for height, width in (pixels.shape[:2], self.image_size))
            raise InputError(
                "The image to draw on is {}, but the detections are of one of {} pixels.".format(
                    *sizes
                )
            )
        return Image.fromarray(draw_detections(pixels, self, self._class_names))

    def save(
        self,
        path: str | os.PathLike,
        image: Any,
        *,
        channels: str = "RGB",
        overwrite: bool = False,
    ) -> None:
        """Write the picture of :meth:`draw`.

        Args:
            path: of the picture; its suffix says the format, such as ``.jpg`` or ``.png``.
            image, channels: as for :meth:`draw`.
            overwrite: replace an existing file.

        Raises:
            InputError: also if the file exists, or cannot be written.
        """
        if Path(path).exists() and not overwrite:
            raise InputError(f"{path} exists already; choose another file or set overwrite=True.")
        save_picture(self.draw(image, channels=channels), path)


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture in the format of its suffix, atomically.

    Raises:
        InputError: for an unknown suffix, or if it cannot be written.
    """
    suffix = Path(path).suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind not in Image.SAVE:
        raise InputError(f"{path} has no suffix of a picture: use .jpg or .png.")
    content = io.BytesIO()
    picture.save(content, kind, quality=90)
    atomic_write(path, lambda file: file.write(content.getbuffer()))


def category_ids(class_names: Sequence[str]) -> list[int]:
    """The ids of classes in COCO's formats: COCO's own for its 80 classes, else the indices."""
    coco = {x["name"]: x["id"] for x in COCO_CATEGORIES if x["isthing"]}
    if list(class_names) == list(coco):
        return list(coco.values())
    return list(range(len(class_names)))
