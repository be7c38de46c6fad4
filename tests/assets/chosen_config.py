"""The config of a query formulation: what differs from the tiny one is the class of the queries."""

from pathlib import Path

from chosen_queries import ChosenQueries
from detectron2.config import LazyCall as L

from dab_detr import get_config

_own = get_config(Path(__file__).with_name("own_config.py"))
dataloader, lr_multiplier = _own.dataloader, _own.lr_multiplier
model, optimizer, train = _own.model, _own.optimizer, _own.train
model.transformer.queries = L(ChosenQueries)(
    num_queries=6, d_model="${..d_model}", num_classes="${...num_classes}", num_groups=2
)
