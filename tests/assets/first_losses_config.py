"""The demo's config, every step logged, stopped after 50 of its 2500 steps."""

from detectron2.config import LazyCall as L
from first_losses import StopAfter

from dab_detr import get_config

_demo = get_config("shapes/dab_detr_shapes.py")
dataloader, lr_multiplier = _demo.dataloader, _demo.lr_multiplier
model, optimizer, train = _demo.model, _demo.optimizer, _demo.train

train.device = "cpu"
train.log_period = 1
train.writers = [L(StopAfter)(steps=50)]
