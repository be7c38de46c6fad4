"""DAB-DETR on a model of timm, by its name (needs timm)."""

from detectron2.config import LazyCall as L

from dab_detr.modeling.backbone.timm import TimmBackbone

from ..dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(TimmBackbone)(name="convnext_tiny")
model.in_features = ["p5"]
# weights of the backbone go here; none are assumed
train.init_checkpoint = ""
train.output_dir = "./output/backbones/timm_convnext_tiny"
