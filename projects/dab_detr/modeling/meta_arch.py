"""DAB-DETR as a Detectron2 meta-architecture: images in, losses or ``Instances`` out."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers.wrappers import shapes_to_tensor
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from dab_detr.modeling.criterion import SetCriterion
from dab_detr.modeling.matcher import HungarianMatcher, Targets
from dab_detr.modeling.transformer import DABTransformer


@META_ARCH_REGISTRY.register()
class DABDETR(nn.Module):
    """DAB-DETR (Liu et al., ICLR 2022, arXiv 2201.12329) on one level of any Detectron2 backbone.

    Args:
        backbone: gives feature maps by name; channels come from its ``output_shape()``.
        in_features: name of the one level to use, alone or as a list of one.
        num_classes: K.
        pixel_mean, pixel_std: one value a channel, in the order and range of the input images.
        criterion: the training loss; None: :class:`SetCriterion` with the paper's weights.
        num_select: how many (query, class) pairs an image returns, best first; section A of the
            paper and the published code take 300 and apply neither NMS nor a threshold.
        d_model ... query_temperature: see
            :class:`~dab_detr.modeling.transformer.DABTransformer`.

    Raises:
        ValueError: if the backbone has no level of that name (the message lists those there are).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: str | Sequence[str],
        num_classes: int,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        criterion: nn.Module | None = None,
        num_select: int = 300,
        d_model: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        num_queries: int = 300,
        num_patterns: int = 0,
        query_dim: int = 4,
        anchor_init: str = "normal",
        freeze_anchor_centers: bool = False,
        modulate_hw_attention: bool = True,
        update_anchors: bool = True,
        share_box_head: bool = True,
        key_temperature: float = 20.0,
        query_temperature: float = 10000.0,
    ):
        super().__init__()
        self.backbone = backbone
        self.in_feature = _single_level(in_features, backbone)
        self.transformer = DABTransformer(
            in_channels=backbone.output_shape()[self.in_feature].channels,
            num_classes=num_classes,
            d_model=d_model,
            num_heads=num_heads,
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=num_decoder_layers,
            ffn_dim=ffn_dim,
            dropout=dropout,
            num_queries=num_queries,
            num_patterns=num_patterns,
            query_dim=query_dim,
            anchor_init=anchor_init,
            freeze_anchor_centers=freeze_anchor_centers,
            modulate_hw_attention=modulate_hw_attention,
            update_anchors=update_anchors,
            share_box_head=share_box_head,
            key_temperature=key_temperature,
            query_temperature=query_temperature,
        )
        self.num_classes = num_classes
        self.num_select = num_select
        self.criterion = SetCriterion(HungarianMatcher()) if criterion is None else criterion
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            channels = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        """Arguments from a YAML config; see :func:`dab_detr.config.add_dab_detr_config`."""
        # Detectron2's programs load the data by the names in the config, after the model is built
        from dab_detr.data.catalog import use_checked_records

        use_checked_records((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        dab = cfg.MODEL.DAB_DETR
        loss = dab.LOSS
        focal = {"focal_alpha": loss.FOCAL_ALPHA, "focal_gamma": loss.FOCAL_GAMMA}
        matcher = HungarianMatcher(
            class_weight=loss.COST_CLASS,
            bbox_weight=loss.COST_BBOX,
            giou_weight=loss.COST_GIOU,
            **focal,
        )
        criterion = SetCriterion(
            matcher,
            class_weight=loss.WEIGHT_CLASS,
            bbox_weight=loss.WEIGHT_BBOX,
            giou_weight=loss.WEIGHT_GIOU,
            **focal,
        )
        own = {"LOSS", "IN_FEATURES", "NUM_CLASSES", "NUM_SELECT"}
        return {
            "backbone": build_backbone(cfg),
            "in_features": dab.IN_FEATURES,
            "num_classes": dab.NUM_CLASSES,
            "num_select": dab.NUM_SELECT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "criterion": criterion,
            **{key.lower(): value for key, value in dab.items() if key not in own},
        }

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]], *, num_boxes: float | None = None
    ) -> dict[str, Tensor] | list[dict]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            batched_inputs: one dict an image, as :class:`detectron2.data.DatasetMapper` makes them:
                ``image`` (C, H, W) in the range of ``pixel_mean``; for training ``instances`` with
                ``gt_boxes`` and ``gt_classes``; for evaluation optionally ``height`` and ``width``
                of the wanted output.
            num_boxes: in training, what the losses are divided by, for a batch that is one part of
                a larger one; see :meth:`SetCriterion.forward`.

        Returns:
            In training, weighted losses by name (see :meth:`SetCriterion.forward`). In evaluation a
            list of ``{"instances": Instances}`` with ``pred_boxes`` (absolute xyxy), ``scores`` and
            ``pred_classes``, best first.
        """
        images = self._preprocess(batched_inputs)
        features = self.backbone(images.tensor)[self.in_feature]
        class_logits, box_logits = self.transformer(
            features, _padding_mask(images, features.shape[-2:]), all_layers=self.training
        )
        if self.training:
            instances = [x["instances"] for x in batched_inputs]
            targets = self._targets(instances)
            return self.criterion(class_logits, box_logits, targets, num_boxes)
        detections = select_detections(
            class_logits[-1], box_logits[-1], images.image_sizes, self.num_select
        )
        return [
            {"instances": detector_postprocess(found, *_output_size(x, size))}
            for found, x, size in zip(detections, batched_inputs, images.image_sizes)
        ]

    def _preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(
            images,
            # Detectron2's Swin declares this and does not have it; it pads by itself
            getattr(self.backbone, "size_divisibility", 0),
            padding_constraints=self.backbone.padding_constraints,
        )

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


def select_detections(
    class_logits: Tensor,
    box_logits: Tensor,
    image_sizes: Sequence[Sequence[int]] | Sequence[Tensor],
    num_select: int,
) -> list[Instances]:
    """Take each image's best (query, class) pairs, without NMS or threshold.

    Args:
        class_logits: ``(B, Q, K)``. box_logits: ``(B, Q, 4)``, whose sigmoid is cxcywh.
        image_sizes: (height, width) of each image without padding; in a trace, tensors of them.
        num_select: how many pairs to keep, at most Q * K.

    Returns:
        One ``Instances`` an image with ``pred_boxes``, ``scores``, ``pred_classes``, best first.
    """
    num_classes = class_logits.shape[-1]
    scores = class_logits.float().sigmoid().flatten(1)
    scores, pairs = scores.topk(min(num_select, scores.shape[1]), dim=1)
    boxes_xyxy = box_convert(box_logits.float().sigmoid(), "cxcywh", "xyxy")
    boxes_xyxy = boxes_xyxy.gather(1, (pairs // num_classes).unsqueeze(-1).expand(-1, -1, 4))
    results = []
    for index, (height, width) in enumerate(image_sizes):
        # in a trace a Python number would stand for the size of every image
        scale = shapes_to_tensor([width, height, width, height], boxes_xyxy.device)
        results.append(
            Instances(
                (height, width),
                pred_boxes=Boxes(boxes_xyxy[index] * scale),
                scores=scores[index],
                pred_classes=pairs[index] % num_classes,
            )
        )
    return results


def _single_level(in_features: str | Sequence[str], backbone: Backbone) -> str:
    names = [in_features] if isinstance(in_features, str) else list(in_features)
    available = list(backbone.output_shape())
    if len(names) != 1:
        raise ValueError(f"in_features is {names}; DAB-DETR takes one level of {available}.")
    if names[0] not in available:
        raise ValueError(
            f"in_features is {names[0]!r}, but {type(backbone).__name__} gives {available}."
        )
    return names[0]


def _padding_mask(images: ImageList, feature_size: torch.Size) -> Tensor | None:
    """Bool ``(B, h, w)``, True where a cell is padding; None when no image is padded.

    The pixels' mask, resized to the cells by nearest neighbour as in the published code, one axis
    at a time. A trace always has it, as it has to hold for other sizes.
    """
    padded_size = images.tensor.shape[-2:]
    if not torch.jit.is_tracing():
        if all(tuple(size) == padded_size for size in images.image_sizes):
            return None
    axes = []
    for axis, (pixels, cells) in enumerate(zip(padded_size, feature_size)):
        lengths = shapes_to_tensor([size[axis] for size in images.image_sizes])
        padded = (torch.arange(pixels) >= lengths[:, None]).float()  # (B, pixels)
        axes.append(F.interpolate(padded[:, None], size=cells, mode="nearest")[:, 0].bool())
    rows, columns = axes
    return (rows[:, :, None] | columns[:, None, :]).to(images.tensor.device, non_blocking=True)


def _output_size(batched_input: dict[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """The wanted (height, width): the original image's if known, else the input's."""
    return batched_input.get("height", image_size[0]), batched_input.get("width", image_size[1])
