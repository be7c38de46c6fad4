"""DAB-DETR with ResNet-101."""

from .dab_detr_r50 import model

model.backbone.stages.depth = 101
