"""Assembles a training from a config, with Detectron2's hooks."""

import logging

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from dab_detr.checkpoint.checkpointer import Checkpointer
from dab_detr.compiling import compile_for_training
from dab_detr.config import build
from dab_detr.data.datasets import class_names
from dab_detr.data.loader import build_train_loader
from dab_detr.data.stream import UnreadableImages
from dab_detr.data.validation import (
    check_classes,
    check_test_records,
    prepare_training_records,
)
from dab_detr.engine.building import (
    build_hooks,
    build_optimizer,
    build_trainer,
    build_writers,
    scale_learning_rate,
)
from dab_detr.engine.course import Course, build_course
from dab_detr.engine.evaluation import Evaluation
from dab_detr.engine.hooks import EMAHook, StopOnSignal
from dab_detr.engine.launching.interruption import Interruption
from dab_detr.engine.launching.output_folder import OutputFolder
from dab_detr.engine.launching.processes import require_equal_weights
from dab_detr.engine.memory import checkpoint_activations
from dab_detr.engine.resuming import find_checkpoints, resume_training
from dab_detr.errors import InputError
from dab_detr.evaluation.test_sets import check_evaluation, evaluated_sets
from dab_detr.stored_config import settings_to_store

logger = logging.getLogger(__name__)


def train(
    cfg: DictConfig,
    model: nn.Module,
    device: torch.device,
    *,
    resume: bool,
    interruption: Interruption | None = None,
    output: OutputFolder | None = None,
) -> dict:
    """Train and evaluate with a config.

    Args:
        cfg: a complete config, see ``configs/common/train.py`` for its ``train`` section.
        model: on ``device``.
        resume: continue from the last checkpoint in ``train.output_dir``, if there is one.
        interruption: its signals stop the training after a checkpoint.
        output: ``train.output_dir`` as it was before this run wrote its config and log.

    Returns:
        Results of the last evaluation, see :func:`evaluate`; empty without test data.

    Raises:
        InputError: for wrong values and data.
        FloatingPointError: if losses or gradients are not finite, see :class:`NonFiniteSteps`.
        TrainingStopped: after a signal.
    """
    interruption = interruption or Interruption()
    seed = cfg.train.seed if cfg.train.seed >= 0 else comm.shared_random_seed()
    average = _prepare_model(cfg, model)
    cfg = scale_learning_rate(cfg)
    optimizer = build_optimizer(cfg, model)
    records = _prepare_data(cfg, model)
    course = build_course(cfg, records)

    checkpointer = Checkpointer(
        model,
        cfg.train.output_dir,
        complete=False,
        max_to_keep=cfg.train.checkpointer.max_to_keep,
        class_names=class_names(cfg, "train", model),
        config=settings_to_store(cfg),
    )
    output = output or OutputFolder(cfg.train.output_dir)
    output.require_disk_space(
        sum(x.numel() * x.element_size() for x in model.state_dict().values())
    )
    found = find_checkpoints(checkpointer) if resume else []
    if not found:
        if cfg.train.init_checkpoint:
            # before DDP broadcasts the weights of process 0, as each may draw another class head
            checkpointer.load(cfg.train.init_checkpoint, checkpointables=[])
        else:
            logger.info("Training from random weights: train.init_checkpoint is empty.")

    trainer = build_trainer(
        cfg, model, optimizer, device=device, seed=seed, interruption=interruption
    )
    evaluation = None
    if evaluated_sets(cfg):
        evaluation = Evaluation(
            cfg, model, course, checkpointer, average=average, interruption=interruption
        )
    # before loading a checkpoint, which has the state of hooks
    trainer.register_hooks(
        build_hooks(
            cfg, model, optimizer, course, checkpointer, average=average, evaluation=evaluation
        )
    )
    checkpointer.add_checkpointable("trainer", trainer)
    checkpointer.add_checkpointable("course", course)
    start_iter = resume_training(checkpointer, found, trainer, course) if found else 0
    # the files are moved only after all processes have read their initial weights
    require_equal_weights(model, start_iter)
    if not found and comm.is_main_process():
        output.set_aside()

    loader = build_train_loader(cfg, records, seed, course.samples(start_iter))
    trainer.reset_data_loader(lambda: UnreadableImages(loader, cfg.train.max_unreadable_images))
    trainer.register_hooks(build_writers(cfg, course, start_iter))
    trainer.register_hooks([StopOnSignal(checkpointer)])
    _log_length(course, start_iter, len(records))
    trainer.train(start_iter, course.max_iter)
    return evaluation.results if evaluation else {}


def _prepare_model(cfg: DictConfig, model: nn.Module) -> EMAHook | None:
    """Prepare the model for ``cfg.train``; returns the EMA hook, if enabled."""
    if cfg.train.channels_last:
        model.to(memory_format=torch.channels_last)
    try:
        checkpoint_activations(model, **cfg.train.activation_checkpointing)
        average = EMAHook(model, cfg.train.ema.decay) if cfg.train.ema.enabled else None
    except ValueError as error:
        raise InputError(str(error)) from error
    if cfg.train.compile:
        compile_for_training(model.transformer)
    return average


def _prepare_data(cfg: DictConfig, model: nn.Module) -> list[dict]:
    """The records to train on; also checks the test data."""
    records = build(cfg, "dataloader.train.dataset")
    check_classes(cfg, model, ("train", "test"))
    records = prepare_training_records(cfg, records)
    check_test_records(cfg)
    check_evaluation(cfg)
    if not evaluated_sets(cfg):
        logger.warning(
            "Nothing is evaluated: the config has no validation data. There will be no best "
            "weights and no pictures of predictions."
        )
    return records


def _log_length(course: Course, start_iter: int, num_images: int) -> None:
    steps = course.max_iter - start_iter
    if steps <= 0:
        return
    images = course.samples(course.max_iter) - course.samples(start_iter)
    logger.info(
        f"Training for {steps} steps of {course.settings.batch_size} images "
        f"({images / num_images:.1f} epochs of {num_images} images)."
    )
