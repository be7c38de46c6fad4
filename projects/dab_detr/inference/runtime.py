"""What computes predictions: a model of this project; and their conversion to ``Instances``."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from dab_detr.inference.copy import inference_copy
from dab_detr.modeling.meta_arch import DABDETR


class Found(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        scores: float ``(n,)`` in 0..1. labels: int64 ``(n,)`` in 0..K-1.
        boxes_xyxy: float32 ``(n, 4)`` in pixels of the image; may extend beyond it.
    """

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor

    def instances(self, resized: tuple[int, int], original: tuple[int, int]) -> Instances:
        """Detectron2's ``Instances`` at the image's own size, as of an evaluation.

        Boxes are resized and clipped, and empty ones left out.

        Args:
            resized: (height, width) of the image that they were found in. original: of the image
                itself.
        """
        found = Instances(
            resized,
            pred_boxes=Boxes(self.boxes_xyxy),
            scores=self.scores,
            pred_classes=self.labels,
        )
        return detector_postprocess(found, *original)


class ModelRuntime:
    """Computes with a model, in evaluation mode and without gradients.

    Args:
        model: on its device; its training mode is restored after each call.
        bf16: mixed precision.
        optimize: use an :func:`inference_copy` of it.
    """

    def __init__(self, model: DABDETR, *, bf16: bool = False, optimize: bool = False):
        self._model = inference_copy(model) if optimize else model
        self._bf16 = bf16

    @property
    def device(self) -> torch.device:
        return self._model.device

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Found]:
        """Detect objects.

        Args:
            images: uint8 ``(C, H, W)`` of any sizes, resized and in the model's format.
        """
        model, was_training = self._model, self._model.training
        model.eval()
        try:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self._bf16):
                found = model.detect([{"image": image} for image in images])
        finally:
            model.train(was_training)
        return [Found(x.scores, x.pred_classes, x.pred_boxes.tensor) for x in found]
