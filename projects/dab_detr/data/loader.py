"""The data loader for training."""

import logging
from collections.abc import Iterable

from detectron2.data import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from omegaconf import DictConfig

from dab_detr.config import build, copy_config
from dab_detr.data.stream import PositionSampler, SampleStream, seeded
from dab_detr.errors import InputError

logger = logging.getLogger(__name__)


def build_train_loader(
    cfg: DictConfig, records: list[dict], seed: int, samples: int
) -> Iterable[list[dict]]:
    """Batches of training samples, the same whether or not the training was stopped.

    The config's data set, mapper and sampler are wrapped in a :class:`SampleStream`; the rest of
    ``dataloader.train`` is built unchanged.

    Args:
        samples: number of samples that have been used already and are skipped.
    """
    cfg = copy_config(cfg)
    node = cfg.dataloader.train
    if "mapper" not in node:
        raise InputError("The config's dataloader.train has no mapper.")
    if samples and node.get("aspect_ratio_grouping"):
        logger.warning(
            "With dataloader.train.aspect_ratio_grouping=True a resumed training sees the images "
            "in another order than one that was not stopped."
        )
    # a sampler may refer to the data set
    node.dataset = DatasetFromList(records, copy=False)
    with seeded(seed):
        sampler = build(cfg, "dataloader.train.sampler") if node.get("sampler") else None
    sampler = sampler or TrainingSampler(len(records), seed=seed)
    # samples of this process; the total need not be a multiple of the number of processes
    passed = -((comm.get_rank() - samples) // comm.get_world_size())
    node.dataset = SampleStream(
        node.dataset,
        build(cfg, "dataloader.train.mapper"),
        seed=seed,
        max_unreadable=cfg.train.max_unreadable_images,
    )
    node.mapper = None
    node.sampler = PositionSampler(sampler, passed)
    node.total_batch_size //= cfg.train.accumulate
    return build(cfg, "dataloader.train")
