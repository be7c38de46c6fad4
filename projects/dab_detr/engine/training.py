"""A whole training: everything that a config describes, put together on Detectron2's hooks."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetFromList
from detectron2.engine import create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from omegaconf import DictConfig
from torch import nn

from dab_detr.checkpoint import Checkpointer
from dab_detr.engine.datasets import check_classes, check_first_image
from dab_detr.engine.evaluation import evaluate
from dab_detr.engine.progress import ProgressPrinter
from dab_detr.engine.trainer import AMP_DTYPES, Trainer
from dab_detr.errors import InputError

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def build(cfg: DictConfig, section: str) -> Any:
    """Instantiate a section of a config, e.g. ``model`` or ``dataloader.train``.

    Raises:
        InputError: if the section's values do not make sense to what they are for.
    """
    node = cfg
    for part in section.split("."):
        node = node[part]
    try:
        return instantiate(node)
    except (TypeError, ValueError, AssertionError, LookupError) as error:
        # an exception of a look-up says no more than the key
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"The config's section {section} does not work: {reason}") from error


def train(cfg: DictConfig, model: nn.Module, device: torch.device, *, resume: bool) -> dict:
    """Train and evaluate as the config says.

    Args:
        cfg: a whole config, see ``configs/common/train.py`` for its ``train`` section.
        model: on ``device``.
        resume: go on from the last checkpoint in ``train.output_dir``, if there is one.

    Returns:
        What the evaluation after the last step gives, see :func:`evaluate`.
    """
    # the learning rates belong to the parameters, so the optimizer sees the model before DDP does
    cfg.optimizer.params.model = model
    optimizer = build(cfg, "optimizer")
    dataset = build(cfg, "dataloader.train.dataset")
    check_classes(cfg, model)
    check_first_image(dataset)
    batch_size = cfg.dataloader.train.total_batch_size
    epoch = max(1, len(dataset) // batch_size)
    max_iter = cfg.train.max_iter or round(cfg.train.epochs * epoch)
    cfg.dataloader.train.dataset = DatasetFromList(dataset, copy=False)
    loader = build(cfg, "dataloader.train")

    parallel = create_ddp_model(
        model,
        device_ids=[comm.get_local_rank()] if device.type == "cuda" else None,
        **cfg.train.ddp,
    )
    trainer = Trainer(
        parallel,
        loader,
        optimizer,
        device=device,
        amp_dtype=AMP_DTYPES[cfg.train.amp.dtype] if cfg.train.amp.enabled else None,
        max_grad_norm=cfg.train.clip_grad.max_norm,
        log_period=cfg.train.log_period,
    )
    checkpointer = Checkpointer(parallel, cfg.train.output_dir, complete=False, trainer=trainer)
    results = {}

    def evaluate_now() -> dict:
        results.clear()
        results.update(evaluate(cfg, model, step=min(trainer.iter + 1, max_iter)))
        return results

    # before loading, so that a checkpoint finds the hooks whose state it has
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            # given the bare schedule, the hook finds the place in it when the training starts
            hooks.LRScheduler(scheduler=build(cfg, "lr_multiplier")),
            hooks.PeriodicCheckpointer(
                checkpointer,
                cfg.train.checkpointer.period or epoch,
                max_iter=max_iter,
                max_to_keep=cfg.train.checkpointer.max_to_keep,
            )
            if comm.is_main_process()
            else None,
            hooks.EvalHook(cfg.train.eval_period or epoch, evaluate_now),
        ]
    )
    start_iter = _load(cfg, checkpointer, trainer, resume=resume)
    if comm.is_main_process():
        writers = [
            ProgressPrinter(max_iter, batch_size),
            JSONWriter(os.path.join(cfg.train.output_dir, METRICS_FILE)),
            TensorboardXWriter(cfg.train.output_dir),
        ]
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=cfg.train.log_period)])
    logger.info(
        f"Training for {max_iter} steps of {batch_size} images "
        f"({max_iter * batch_size / max(1, len(dataset)):.1f} epochs of {len(dataset)} images)."
    )
    trainer.train(start_iter, max_iter)
    return results


def _load(cfg: DictConfig, checkpointer: Checkpointer, trainer: Trainer, *, resume: bool) -> int:
    """Load the last checkpoint or the initial weights; returns the step to begin with."""
    folder = cfg.train.output_dir
    found = comm.all_gather(resume and checkpointer.has_checkpoint())
    if len(set(found)) > 1:
        raise InputError(
            f"Only some machines see a checkpoint in {folder}; to resume, all have to see the same "
            "folder."
        )
    if found[0]:
        checkpointer.complete = True
        checkpointer.resume_or_load("", resume=True)
        logger.info(f"Resuming after step {trainer.iter + 1}.")
        return trainer.iter + 1
    if resume:
        logger.info(f"{folder} holds no checkpoint: starting from the beginning.")
    metrics = Path(folder) / METRICS_FILE
    if comm.is_main_process() and metrics.exists():
        # the writer appends; two trainings in one file would be one muddled curve
        metrics.replace(metrics.with_name(f"previous_{METRICS_FILE}"))
    checkpointer.load(cfg.train.init_checkpoint, checkpointables=[])
    return 0
