"""DAB-DETR R50-DC5, 50 epochs on COCO: 44.5 AP in the paper (Table 2)."""

from .common.coco_loader import dataloader
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier_50ep as lr_multiplier
from .common.train import train
from .models.dab_detr_r50_dc5 import model

# as released; every other model has 20
model.transformer.key_temperature = 10.0
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "./output/dab_detr_r50_dc5_50ep"
