"""DAB-DETR with ResNet-50-DC5: the last stage dilated, stride 16."""

from detectron2.config import LazyCall as L

from dab_detr.modeling.backbone.dc5 import make_dc5_stages

from .dab_detr_r50 import model

model.backbone.stages = L(make_dc5_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN")
