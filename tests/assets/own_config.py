"""A config for tests with data of their own: the tiny one, for the fewest steps."""

from pathlib import Path

from dab_detr import get_config

_tiny = get_config(Path(__file__).with_name("tiny_config.py"))
dataloader, lr_multiplier = _tiny.dataloader, _tiny.lr_multiplier
model, optimizer, train = _tiny.model, _tiny.optimizer, _tiny.train

dataloader.train.total_batch_size = 4
train.max_iter = 2
train.pictures.count = 0
train.pictures.tensorboard = 0
