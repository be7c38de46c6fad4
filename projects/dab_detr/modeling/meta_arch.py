"""DAB-DETR as a Detectron2 meta-architecture: images in, losses or ``Instances`` out."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import configurable, instantiate
from detectron2.layers.wrappers import shapes_to_tensor
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from dab_detr.flat_config import model_config
from dab_detr.modeling.core import Core, select_detections
from dab_detr.modeling.criterion import SetCriterion
from dab_detr.modeling.matcher import HungarianMatcher
from dab_detr.modeling.structures import Targets
from dab_detr.modeling.transformer import DABTransformer


@META_ARCH_REGISTRY.register()
class DABDETR(nn.Module):
    """DAB-DETR (Liu et al., ICLR 2022, arXiv 2201.12329) on one level of any Detectron2 backbone.

    The constructor initialises all weights except the backbone's; see
    :mod:`dab_detr.modeling.initialization`.

    Args:
        backbone: returns feature maps by name; its ``output_shape()`` gives the channels.
        in_features: name of the level to use, or a list with one name.
        transformer: encoder, query formulation and decoder.
        num_classes: K.
        pixel_mean, pixel_std: one value per channel, in the order and range of the input images.
        criterion: the training loss; None: :class:`SetCriterion` with the paper's weights.
        num_select: number of (query, class) pairs returned per image, best first; section A of the
            paper and the published code take 300 and apply neither NMS nor a threshold.

    Raises:
        ValueError: if the backbone has no level of that name (the message lists its levels), or
            the decoder has another number of classes.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: str | Sequence[str],
        transformer: DABTransformer,
        num_classes: int,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        criterion: nn.Module | None = None,
        num_select: int = 300,
    ):
        super().__init__()
        scored = transformer.decoder.class_head.out_features
        if scored != num_classes:
            raise ValueError(f"num_classes is {num_classes}, but the decoder's is {scored}.")
        self.backbone = backbone
        self.in_feature = _single_level(in_features, backbone)
        channels = backbone.output_shape()[self.in_feature].channels
        self.input_proj = nn.Conv2d(channels, transformer.d_model, kernel_size=1)
        self.transformer = transformer
        transformer.reset_parameters()
        self.num_classes = num_classes
        self.num_select = num_select
        self.criterion = SetCriterion(HungarianMatcher()) if criterion is None else criterion
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            channels = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        """Arguments from a YAML config; see :func:`dab_detr.config.add_dab_detr_config`."""
        # Detectron2's programs load the data sets named in the config after the model is built
        from dab_detr.data.catalog import use_checked_records

        use_checked_records((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        dab = {key.lower(): value for key, value in cfg.MODEL.DAB_DETR.items()}
        in_features = dab.pop("in_features")
        model = model_config(**dab)
        return {
            "backbone": build_backbone(cfg),
            "in_features": in_features,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            **{
                key: instantiate(model[key])
                for key in ("transformer", "num_classes", "criterion", "num_select")
            },
        }

    @property
    def core(self) -> Core:
        """The same modules as a model on tensors only, in the same mode.

        A new one at each access: ``train`` and ``eval`` of it act on the modules, hooks set on it
        are not those of the next one.
        """
        core = Core(self.backbone, self.in_feature, self.input_proj, self.transformer)
        core.training = self.training
        return core

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]], *, num_boxes: float | None = None
    ) -> dict[str, Tensor] | list[dict]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            batched_inputs: one dict per image, as :class:`detectron2.data.DatasetMapper` makes
                them: ``image`` (C, H, W) in the range of ``pixel_mean``; for training ``instances``
                with ``gt_boxes`` and ``gt_classes``; for evaluation optionally ``height`` and
                ``width`` of the output.
            num_boxes: in training, divisor of the losses, for a batch that is a part of a larger
                one (gradient accumulation); see :meth:`SetCriterion.forward`.

        Returns:
            In training, weighted losses by name (see :meth:`SetCriterion.forward`). In evaluation a
            list of ``{"instances": Instances}`` with ``pred_boxes`` (absolute xyxy), ``scores`` and
            ``pred_classes``, best first.
        """
        if not self.training:
            return [
                {"instances": detector_postprocess(found, *_output_size(x, found.image_size))}
                for found, x in zip(self.detect(batched_inputs), batched_inputs)
            ]
        images = self.preprocess_image(batched_inputs)
        targets = self._targets([x["instances"] for x in batched_inputs])
        outputs = self.core.outputs(
            images.tensor,
            padding_mask_of(images),
            all_layers=True,
            targets=targets if self.transformer.queries.uses_targets else None,
        )
        return self.criterion(outputs, targets, num_boxes)

    def detect(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        """Detections in pixels of the given images, which may extend beyond them.

        Evaluation then resizes them to the output's size and clips them.

        Args:
            batched_inputs: as for :meth:`forward`; only ``image`` is used.

        Returns:
            As :meth:`inference`.
        """
        images = self.preprocess_image(batched_inputs)
        logits = self.core(images.tensor, padding_mask_of(images))
        return self.inference(*logits, images.image_sizes)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them to one size, at the right and at the bottom."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(
            images,
            # Detectron2's Swin declares this attribute but does not set it; it pads by itself
            getattr(self.backbone, "size_divisibility", 0),
            padding_constraints=self.backbone.padding_constraints,
        )

    def inference(
        self,
        class_logits: Tensor,
        box_logits: Tensor,
        image_sizes: Sequence[Sequence[int]] | Sequence[Tensor],
    ) -> list[Instances]:
        """The best detections of each image as Detectron2's ``Instances``.

        Args:
            class_logits: ``(B, Q, K)``. box_logits: ``(B, Q, 4)``, whose sigmoid is cxcywh.
            image_sizes: (height, width) of each image without padding; tensors while tracing.

        Returns:
            One ``Instances`` per image with ``pred_boxes``, ``scores``, ``pred_classes``.
        """
        found = select_detections(class_logits, box_logits, self.num_select)
        results = []
        for scores, labels, boxes_xyxy, (height, width) in zip(*found, image_sizes):
            # a trace would treat a Python number as a constant
            scale = shapes_to_tensor([width, height, width, height], boxes_xyxy.device)
            results.append(
                Instances(
                    (height, width),
                    pred_boxes=Boxes(boxes_xyxy * scale),
                    scores=scores,
                    pred_classes=labels,
                )
            )
        return results

    def _targets(self, instances: list[Instances]) -> Targets:
        boxes, labels = [], []
        for objects in instances:
            height, width = objects.image_size
            boxes_xyxy = objects.gt_boxes.tensor.float()
            scale = boxes_xyxy.new_tensor([width, height, width, height])
            boxes.append(box_convert(boxes_xyxy, "xyxy", "cxcywh") / scale)
            labels.append(objects.gt_classes)
        return Targets(
            labels=torch.cat(labels).to(self.device, non_blocking=True),
            boxes_cxcywh=torch.cat(boxes).to(self.device, non_blocking=True),
            counts=[len(x) for x in labels],
        )


def _single_level(in_features: str | Sequence[str], backbone: Backbone) -> str:
    names = [in_features] if isinstance(in_features, str) else list(in_features)
    available = list(backbone.output_shape())
    if len(names) != 1:
        raise ValueError(f"in_features is {names}; DAB-DETR uses exactly one level of {available}.")
    if names[0] not in available:
        raise ValueError(
            f"in_features is {names[0]!r}, but {type(backbone).__name__} has {available}."
        )
    return names[0]


def padding_mask_of(images: ImageList) -> Tensor | None:
    """Bool ``(B, H, W)``, True where a pixel is padding; None when no image is padded.

    A trace always has a mask, so that it is valid for other sizes.
    """
    padded_size = images.tensor.shape[-2:]
    if not torch.jit.is_tracing():
        if all(tuple(size) == padded_size for size in images.image_sizes):
            return None
    device = images.tensor.device
    rows, columns = (
        torch.arange(pixels, device=device)
        >= shapes_to_tensor([size[axis] for size in images.image_sizes], device)[:, None]
        for axis, pixels in enumerate(padded_size)
    )  # (B, H) and (B, W)
    return rows[:, :, None] | columns[:, None, :]


def _output_size(batched_input: dict[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """The output's (height, width): the original image's if known, else the input's."""
    return batched_input.get("height", image_size[0]), batched_input.get("width", image_size[1])
