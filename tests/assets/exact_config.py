"""A config for tests that compare weights: nothing in it depends on how a batch is divided.

No batch norm that learns, images of one size, plain SGD: the change of the weights is the sum of
the gradients.
"""

from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from dab_detr import get_config

_tiny = get_config(Path(__file__).with_name("tiny_config.py"))
dataloader, lr_multiplier = _tiny.dataloader, _tiny.lr_multiplier
model, train = _tiny.model, _tiny.train

dataloader.train.total_batch_size = 16
model.backbone.stem.norm = "FrozenBN"
for stage in model.backbone.stages:
    stage.norm = "FrozenBN"
optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}"),
    lr=0.02,
    momentum=0.9,
)
train.max_iter = 3
train.clip_grad.max_norm = 0.0
train.pictures.count = 0
train.pictures.tensorboard = 0
