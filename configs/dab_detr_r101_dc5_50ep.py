"""DAB-DETR R101-DC5, 50 epochs on COCO: 45.8 AP in the paper (Table 2)."""

from .common.coco_loader import dataloader
from .common.optimizer import optimizer
from .common.schedule import lr_multiplier_50ep as lr_multiplier
from .common.train import train
from .models.dab_detr_r101_dc5 import model

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
train.output_dir = "./output/dab_detr_r101_dc5_50ep"
