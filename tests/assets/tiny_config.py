"""A config for tests: the shapes recipe on a handful of small images, one evaluation at the end."""

from dab_detr import get_config
from dab_detr.data.shapes import ShapesSpec, register_shapes

register_shapes("tiny", ShapesSpec(num_train=32, num_val=8, size=64, max_objects=3))

_shapes = get_config("shapes/dab_detr_shapes.py")
dataloader = _shapes.dataloader
lr_multiplier = _shapes.lr_multiplier
model = _shapes.model
optimizer = _shapes.optimizer
train = _shapes.train

dataloader.train.dataset.names = "tiny_train"
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 0
dataloader.test.dataset.names = "tiny_val"
model.transformer.d_model = 32
model.transformer.encoder.num_heads = 4
model.transformer.encoder.ffn_dim = 64
model.transformer.decoder.num_layers = 2
train.device = "cpu"
train.max_iter = 4
train.eval_period = 100
train.checkpointer.period = 100
train.log_period = 1
train.pictures.count = 2
