"""What computes predictions: a model of this project; and their conversion to ``Instances``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert

from dab_detr.inference.copy import inference_copy
from dab_detr.modeling.core import select_pairs
from dab_detr.modeling.meta_arch import DABDETR, padding_mask_of


class Found(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        scores: float ``(n,)`` in 0..1. labels: int64 ``(n,)`` in 0..K-1.
        boxes_xyxy: float32 ``(n, 4)`` in pixels of the image; may extend beyond it.
    """

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor

    def instances(
        self, resized: tuple[int, int], original: tuple[int, int], **fields: Tensor
    ) -> Instances:
        """Detectron2's ``Instances`` at the image's own size, as of an evaluation.

        Boxes are resized and clipped, and empty ones left out.

        Args:
            resized: (height, width) of the image that they were found in. original: of the image
                itself. fields: further ones of the detections, ``(n, ...)``.
        """
        found = Instances(
            resized,
            pred_boxes=Boxes(self.boxes_xyxy),
            scores=self.scores,
            pred_classes=self.labels,
            **fields,
        )
        return detector_postprocess(found, *original)


class FoundLayers(NamedTuple):
    """Detections of one image, best first, with those of their queries in all decoder layers.

    Attributes:
        scores: float ``(L, n)`` in 0..1, of each detection's class in each layer.
        labels: int64 ``(n,)`` in 0..K-1.
        boxes_xyxy: float32 ``(L + 1, n, 4)`` in pixels of the image: the anchors before the first
            layer, and the boxes of each layer. ``(L, n, 4)`` for queries without anchors.
    """

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor

    def instances(self, resized: tuple[int, int], original: tuple[int, int]) -> Instances:
        """As :meth:`Found.instances`, with ``layer_boxes`` and ``layer_scores``, one row each."""
        last = Found(self.scores[-1], self.labels, self.boxes_xyxy[-1])
        boxes = Boxes(self.boxes_xyxy.transpose(0, 1).flatten(0, 1))
        # as detector_postprocess treats those of the last layer
        boxes.scale(original[1] / resized[1], original[0] / resized[0])
        boxes.clip(original)
        layer_boxes = boxes.tensor.view(len(self.labels), -1, 4)
        return last.instances(
            resized, original, layer_boxes=layer_boxes, layer_scores=self.scores.T
        )


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

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self._model.transformer.decoder.layers)

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Found]:
        """Detect objects.

        Args:
            images: uint8 ``(C, H, W)`` of any sizes, resized and in the model's format.
        """
        with self._evaluating() as model:
            found = model.detect([{"image": image} for image in images])
        return [Found(x.scores, x.pred_classes, x.pred_boxes.tensor) for x in found]

    @torch.no_grad()
    def layers(self, image: Tensor) -> FoundLayers:
        """Detect objects in one image, with all decoder layers.

        Args:
            image: as for :meth:`__call__`.
        """
        with self._evaluating() as model:
            images = model.preprocess_image([{"image": image}])
            anchors, outputs = model.core.layers(images.tensor, padding_mask_of(images))
            last, (queries,), (labels,) = select_pairs(outputs.class_logits[-1], model.num_select)
        scores = outputs.class_logits[:-1, 0, queries, labels].float().sigmoid()
        boxes = outputs.box_logits[:, 0, queries].sigmoid()
        if anchors is not None:
            boxes = torch.cat((anchors[:1, queries], boxes))
        height, width = images.image_sizes[0]
        scale = boxes.new_tensor([width, height, width, height])
        return FoundLayers(
            scores=torch.cat((scores, last)),
            labels=labels,
            boxes_xyxy=box_convert(boxes, "cxcywh", "xyxy") * scale,
        )

    @contextmanager
    def _evaluating(self) -> Iterator[DABDETR]:
        """The model in evaluation mode and in the precision to compute in."""
        model, was_training = self._model, self._model.training
        model.eval()
        try:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self._bf16):
                yield model
        finally:
            model.train(was_training)
