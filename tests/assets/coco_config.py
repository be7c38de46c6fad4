"""For tests on COCO 2017 in Detectron2's layout: the R50 config's data sections, and a tiny
model on small images."""

from pathlib import Path

from dab_detr import get_config

_tiny = get_config(Path(__file__).with_name("tiny_config.py"))
lr_multiplier, model, optimizer, train = (
    _tiny.lr_multiplier, _tiny.model, _tiny.optimizer, _tiny.train
)  # fmt: skip

dataloader = get_config("dab_detr_r50_50ep.py").dataloader
for _part in (dataloader.train, dataloader.test):
    _part.num_workers = 0
    _part.mapper.augmentations[-1].short_edge_length = 64
dataloader.train.mapper.augmentations[1].prob = 0.0
dataloader.train.total_batch_size = 4
model.num_classes = 80
train.max_iter = 2
train.pictures.count = 1
train.pictures.tensorboard = 0
