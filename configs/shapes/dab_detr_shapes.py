"""A small DAB-DETR for the embedded shapes: learns from scratch in minutes on two CPU cores."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

import dab_detr.data  # registers shapes_train and shapes_val

from ..common.coco_loader import dataloader
from ..common.optimizer import optimizer
from ..common.train import train
from ..models.dab_detr_r50 import model

_flips = [
    L(T.RandomFlip)(prob=0.5, horizontal=True),
]
dataloader.train.dataset.names = "shapes_train"
dataloader.train.mapper.augmentations = _flips
dataloader.train.num_workers = 1
dataloader.test.dataset.names = "shapes_val"
dataloader.test.mapper.augmentations = []
dataloader.test.batch_size = 20
dataloader.test.num_workers = 0

# A three-stage ResNet of stride 8; batch norm learns faster from scratch than group norm.
model.backbone = L(ResNet)(
    stem=L(BasicStem)(in_channels=3, out_channels=32, norm="BN"),
    stages=[
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=1,
            in_channels=in_channels,
            out_channels=out_channels,
            stride_per_block=[stride],
            norm="BN",
        )
        for in_channels, out_channels, stride in ((32, 32, 1), (32, 64, 2), (64, 128, 1))
    ],
    out_features=["res4"],
)
model.in_features = ["res4"]
model.num_classes = 3
model.transformer.d_model = 96
model.transformer.encoder.ffn_dim = 384
model.transformer.encoder.num_layers = 1
model.transformer.decoder.num_layers = 3
model.transformer.queries.num_queries = 36
model.num_select = 100
# With few images and steps the published start, N(0, 1), learns nothing; a grid does.
model.transformer.queries.anchor_init = "grid"
model.transformer.queries.temperature = 20.0

optimizer.lr = 1e-3
optimizer.params.lr_factor_func.factor = 1.0
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[3, 4]),
    warmup_factor=0.01,
    warmup_length=0.03,
)

train.output_dir = "./output/shapes"
train.seed = 0
train.epochs = 20
train.eval_period = 500
train.checkpointer.period = 500
train.log_period = 50
train.pictures.count = 8
