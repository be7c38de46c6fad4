"""DAB-DETR on one level, p4 of stride 16, of a ResNet-50's feature pyramid."""

from detectron2.config import LazyCall as L
from detectron2.modeling import FPN

from ..dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

_resnet = model.backbone
# finer levels would not reach p4
_resnet.out_features = ["res4", "res5"]
model.backbone = L(FPN)(bottom_up=_resnet, in_features=["res4", "res5"], out_channels=256)
model.in_features = ["p4"]
# weights of the backbone go here; none are assumed
train.init_checkpoint = ""
train.output_dir = "./output/backbones/r50_fpn_p4"
