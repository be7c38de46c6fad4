"""What a training makes of its config: optimizer, trainer, hooks, writers."""

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
from dab_detr.engine.hooks import BackboneLearningRate, History, MovingAverage
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
    """The config with the learning rate that ``train.auto_scale_lr`` asks for.

    Goyal et al. (arXiv 1706.02677): k times the batch, k times the learning rate.
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
    """The config's optimizer of a model's parameters.

    Args:
        cfg: a whole config. model: not the wrapper of data parallelism, as the learning rates
            belong to the names of its parameters.

    Raises:
        InputError: if the section does not work.
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
    """A trainer of the model, in parallel where there are several workers; without data yet.

    Args:
        cfg: a whole config.
        model: on ``device``, with the weights to begin with: the first worker's are given to all.
        optimizer, seed, interruption: as of :class:`Trainer`.
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
        # where they begin is known when a checkpoint has been loaded: reset_data_loader()
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
    average: MovingAverage | None,
    evaluation: Evaluation | None,
) -> list[HookBase | None]:
    """What happens before, after and between the steps, in this order; writers come after it.

    Args:
        cfg: a whole config.
        model: not the wrapper of data parallelism.
        average, evaluation: None leaves them out.
    """
    period = cfg.train.checkpointer.period or course.settings.epoch
    periodic = hooks.PeriodicCheckpointer(checkpointer, period)
    return [
        History(),
        # from the first step on: a resumed training has the rows of one that was not stopped
        hooks.IterationTimer(warmup_iter=1),
        BackboneLearningRate(optimizer, model.backbone),
        # given the bare schedule, the hook finds the place in it when the training starts
        hooks.LRScheduler(scheduler=course),
        average,
        periodic if comm.is_main_process() else None,
        evaluation,
    ]


def build_writers(cfg: DictConfig, course: Course, start_iter: int) -> list[HookBase]:
    """The progress on a terminal, and what writes metrics every ``train.log_period`` steps.

    Only the main worker has any.

    Args:
        cfg: a whole config.
        start_iter: the first iteration that is to come.

    Raises:
        InputError: if one of ``train.writers`` cannot be built, or is none.
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
                f"train.writers.{index} gives {type(writer).__name__}; an EventWriter of "
                "Detectron2 is needed, as a LazyCall."
            )
    return built
