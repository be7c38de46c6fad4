"""Builds the parts of a training from its config: optimizer, trainer, hooks, writers."""

import logging
from pathlib import Path

import torch
from detectron2.engine import HookBase, create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from omegaconf import DictConfig
from torch import nn

from dab_detr.checkpoint.checkpointer import Checkpointer
from dab_detr.config import build, copy_config
from dab_detr.engine.course import Course
from dab_detr.engine.evaluation import Evaluation
from dab_detr.engine.hooks import BackboneLearningRate, EMAHook, MetricHistory
from dab_detr.engine.launching.interruption import Interruption
from dab_detr.engine.launching.output_folder import METRICS_FILE
from dab_detr.engine.nonfinite import NonFiniteSteps
from dab_detr.engine.progress import ProgressBar, ProgressPrinter
from dab_detr.engine.trainer import AMP_DTYPES, Trainer
from dab_detr.engine.unused import freeze_unused
from dab_detr.engine.writers import MetricsWriter, TensorBoardWriter, Writers
from dab_detr.errors import InputError

logger = logging.getLogger(__name__)


def scale_learning_rate(cfg: DictConfig) -> DictConfig:
    """The config with the learning rate scaled by ``train.auto_scale_lr``.

    Linear scaling (Goyal et al., arXiv 1706.02677): k times the batch, k times the rate.
    """
    scaling = cfg.train.auto_scale_lr
    batch_size = cfg.dataloader.train.total_batch_size
    if not scaling.enabled or batch_size == scaling.base_batch_size:
        return cfg
    scaled = copy_config(cfg)
    scaled.optimizer.lr = cfg.optimizer.lr * batch_size / scaling.base_batch_size
    logger.info(
        f"train.auto_scale_lr: optimizer.lr is {scaled.optimizer.lr:.3g} instead of "
        f"{cfg.optimizer.lr:.3g}, for batches of {batch_size} instead of "
        f"{scaling.base_batch_size} images."
    )
    return scaled


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The config's optimizer for the model's parameters.

    Args:
        cfg: a complete config. model: without DistributedDataParallel, as learning rates depend on
            the names of parameters.

    Raises:
        InputError: if the section cannot be built.
    """
    cfg = copy_config(cfg)
    cfg.optimizer.params.model = model
    return build(cfg, "optimizer")


def build_trainer(
    cfg: DictConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    seed: int,
    interruption: Interruption,
) -> Trainer:
    """A trainer of the model, with DistributedDataParallel if needed; still without data.

    Args:
        cfg: a complete config.
        model: on ``device``, with its initial weights; those of process 0 are broadcast.
        optimizer, seed, interruption: as for :class:`Trainer`.
    """
    if comm.get_world_size() > 1 and not cfg.train.ddp.find_unused_parameters:
        freeze_unused(model)
    parallel = create_ddp_model(
        model,
        device_ids=[comm.get_local_rank()] if device.type == "cuda" else None,
        **cfg.train.ddp,
    )
    return Trainer(
        parallel,
        # set later by reset_data_loader(): the first sample depends on the loaded checkpoint
        [],
        optimizer,
        device=device,
        accumulate=cfg.train.accumulate,
        amp_dtype=AMP_DTYPES[cfg.train.amp.dtype] if cfg.train.amp.enabled else None,
        max_grad_norm=cfg.train.clip_grad.max_norm,
        log_period=cfg.train.log_period,
        seed=seed,
        nonfinite=NonFiniteSteps(Path(cfg.train.output_dir), cfg.train.max_nonfinite_steps),
        interruption=interruption,
    )


def build_hooks(
    cfg: DictConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    course: Course,
    checkpointer: Checkpointer,
    *,
    average: EMAHook | None,
    evaluation: Evaluation | None,
) -> list[HookBase | None]:
    """The hooks in their order; writers follow.

    Args:
        cfg: a complete config.
        model: without DistributedDataParallel.
        average, evaluation: None leaves them out.
    """
    period = cfg.train.checkpointer.period or course.settings.epoch
    periodic = hooks.PeriodicCheckpointer(checkpointer, period)
    return [
        MetricHistory(),
        # from the first step on, so that a resumed training has the same rows
        hooks.IterationTimer(warmup_iter=1),
        BackboneLearningRate(optimizer, model.backbone),
        # with the plain schedule, the hook finds the position in it when the training starts
        hooks.LRScheduler(scheduler=course),
        average,
        periodic if comm.is_main_process() else None,
        evaluation,
    ]


def build_writers(cfg: DictConfig, course: Course, start_iter: int) -> list[HookBase]:
    """The progress bar, and writers of metrics every ``train.log_period`` steps.

    Only process 0 has any.

    Args:
        cfg: a complete config.
        start_iter: the first iteration of this run.

    Raises:
        InputError: if one of ``train.writers`` cannot be built, or is not a writer.
    """
    if not comm.is_main_process():
        return []
    folder = Path(cfg.train.output_dir)
    progress = ProgressBar()
    writers = [
        ProgressPrinter(course.max_iter, course.settings.batch_size, start_iter, progress),
        MetricsWriter(folder / METRICS_FILE),
        TensorBoardWriter(folder),
        *_configured_writers(cfg),
    ]
    return [progress, Writers(writers, period=cfg.train.log_period)]


def _configured_writers(cfg: DictConfig) -> list[EventWriter]:
    built = [build(cfg, f"train.writers.{index}") for index in range(len(cfg.train.writers))]
    for index, writer in enumerate(built):
        if not isinstance(writer, EventWriter):
            raise InputError(
                f"train.writers.{index} builds {type(writer).__name__}; a LazyCall of a Detectron2 "
                "EventWriter is needed."
            )
    return built
