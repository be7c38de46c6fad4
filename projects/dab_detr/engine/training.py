"""A whole training: everything that a config describes, put together on Detectron2's hooks."""

import logging
from pathlib import Path

import torch
from detectron2.engine import create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig
from torch import nn

from dab_detr.checkpoint.checkpointer import BEST_FILE, Checkpointer
from dab_detr.checkpoint.writing import write_state
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
from dab_detr.engine.course import Course, Settings
from dab_detr.engine.hooks import (
    BackboneLearningRate,
    Evaluation,
    History,
    MovingAverage,
    StopOnSignal,
)
from dab_detr.engine.launching.interruption import Interruption
from dab_detr.engine.launching.output_folder import METRICS_FILE, OutputFolder
from dab_detr.engine.launching.processes import require_equal_weights
from dab_detr.engine.memory import checkpoint_activations
from dab_detr.engine.nonfinite import NonFiniteSteps
from dab_detr.engine.progress import ProgressBar, ProgressPrinter
from dab_detr.engine.resuming import find_checkpoints, resume_training
from dab_detr.engine.trainer import AMP_DTYPES, Trainer
from dab_detr.engine.unused import freeze_unused
from dab_detr.engine.writers import (
    MetricsWriter,
    TensorBoardWriter,
    Writers,
    configured_writers,
)
from dab_detr.errors import InputError
from dab_detr.evaluation.evaluate import RESULTS_FILE, evaluate, format_results
from dab_detr.evaluation.test_sets import build_loader, check_evaluation, evaluated_sets, label
from dab_detr.inference.copy import inference_copy
from dab_detr.visualization.predictions import predictions

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
    """Train and evaluate as the config says.

    Args:
        cfg: a whole config, see ``configs/common/train.py`` for its ``train`` section.
        model: on ``device``.
        resume: go on from the last checkpoint in ``train.output_dir``, if there is one.
        interruption: its signals end the training after a checkpoint.
        output: ``train.output_dir`` as it was before this run wrote its config and log there.

    Returns:
        What the evaluation after the last step gives, see :func:`evaluate`; nothing without data
        to evaluate on.

    Raises:
        InputError: for values and data that do not fit.
        FloatingPointError: if losses or gradients are not finite, see :class:`NonFiniteSteps`.
        TrainingStopped: after a signal.
    """
    interruption = interruption or Interruption()
    seed = cfg.train.seed if cfg.train.seed >= 0 else comm.shared_random_seed()
    folder = Path(cfg.train.output_dir)
    if cfg.train.channels_last:
        model.to(memory_format=torch.channels_last)
    try:
        checkpoint_activations(model, **cfg.train.activation_checkpointing)
        average = MovingAverage(model, cfg.train.ema.decay) if cfg.train.ema.enabled else None
    except ValueError as error:
        raise InputError(str(error)) from error
    if cfg.train.compile:
        compile_for_training(model.transformer)
    _scale_learning_rate(cfg)
    # the learning rates belong to the parameters, so the optimizer sees the model before DDP does
    cfg.optimizer.params.model = model
    optimizer = build(cfg, "optimizer")
    records = build(cfg, "dataloader.train.dataset")
    check_classes(cfg, model, ("train", "test"))
    records = prepare_training_records(cfg, records)
    check_test_records(cfg)
    check_evaluation(cfg)
    is_evaluated = bool(evaluated_sets(cfg))
    if not is_evaluated:
        logger.warning(
            "Nothing is evaluated: the config has no validation data. So there will be no best "
            "weights and no pictures of predictions."
        )
    course = _course(cfg, records)
    epoch = course.settings.epoch

    checkpointer = Checkpointer(
        model,
        str(folder),
        complete=False,
        max_to_keep=cfg.train.checkpointer.max_to_keep,
        class_names=class_names(cfg, "train", model),
    )
    output = output or OutputFolder(folder)
    output.require_room(sum(x.numel() * x.element_size() for x in model.state_dict().values()))
    found = find_checkpoints(checkpointer) if resume else []
    if not found:
        # before DDP hands the first process's weights to all: each may draw a class head of its own
        checkpointer.load(cfg.train.init_checkpoint, checkpointables=[])
    if comm.get_world_size() > 1 and not cfg.train.ddp.find_unused_parameters:
        freeze_unused(model)
    parallel = create_ddp_model(
        model,
        device_ids=[comm.get_local_rank()] if device.type == "cuda" else None,
        **cfg.train.ddp,
    )
    trainer = Trainer(
        parallel,
        # given below, when it is known where to begin
        [],
        optimizer,
        device=device,
        accumulate=cfg.train.accumulate,
        amp_dtype=AMP_DTYPES[cfg.train.amp.dtype] if cfg.train.amp.enabled else None,
        max_grad_norm=cfg.train.clip_grad.max_norm,
        log_period=cfg.train.log_period,
        seed=seed,
        nonfinite=NonFiniteSteps(folder, cfg.train.max_nonfinite_steps),
        interruption=interruption,
    )
    checkpointer.add_checkpointable("trainer", trainer)
    checkpointer.add_checkpointable("course", course)
    periodic = hooks.PeriodicCheckpointer(checkpointer, cfg.train.checkpointer.period or epoch)
    stop = StopOnSignal(checkpointer)
    results: dict = {}

    def evaluate_now(step: int) -> dict:
        results.clear()
        averaged = average.model if average else None
        results.update(evaluate(cfg, model, step=step, averaged=averaged))
        if results and step < course.max_iter:
            logger.info(f"Evaluation after step {step}:\n{format_results(results)}")
        if comm.is_main_process():
            _show_predictions(cfg, model, trainer.storage)
        return results

    def keep_best(task: str) -> None:
        best = average.model if average and task.endswith("_ema") else model
        write_state(best.state_dict(), folder / BEST_FILE, checkpointer.description())
        logger.info(f"The best AP so far, of {task}: its weights are in {folder / BEST_FILE}.")

    # before loading, so that a checkpoint finds the hooks whose state it has
    trainer.register_hooks(
        [
            History(),
            # from the first step on: a resumed training has the rows of one that was not stopped
            hooks.IterationTimer(warmup_iter=1),
            BackboneLearningRate(optimizer, model.backbone),
            # given the bare schedule, the hook finds the place in it when the training starts
            hooks.LRScheduler(scheduler=course),
            average,
            periodic if comm.is_main_process() else None,
            Evaluation(
                cfg.train.eval_period or epoch,
                evaluate_now,
                is_due=lambda step: step == course.former_max_iter,
                results_file=folder / RESULTS_FILE,
                interruption=interruption,
                keep_best=keep_best,
                save=stop.save,
            )
            if is_evaluated
            else None,
        ]
    )
    start_iter = resume_training(checkpointer, found, trainer, course) if found else 0
    # all have read what they begin with, and it may be one of the files that go
    require_equal_weights(model, start_iter)
    if not found and comm.is_main_process():
        output.set_aside()
    loader = build_train_loader(cfg, records, seed, course.samples(start_iter))
    trainer.reset_data_loader(lambda: UnreadableImages(loader, cfg.train.max_unreadable_images))
    if comm.is_main_process():
        progress = ProgressBar()
        writers = [
            ProgressPrinter(course.max_iter, course.settings.batch_size, start_iter, progress),
            MetricsWriter(folder / METRICS_FILE),
            TensorBoardWriter(folder),
            *configured_writers(cfg),
        ]
        trainer.register_hooks([progress, Writers(writers, period=cfg.train.log_period)])
    trainer.register_hooks([stop])
    if start_iter < course.max_iter:
        steps = course.max_iter - start_iter
        images = course.samples(course.max_iter) - course.samples(start_iter)
        logger.info(
            f"Training for {steps} steps of {course.settings.batch_size} images "
            f"({images / len(records):.1f} epochs of {len(records)} images)."
        )
    trainer.train(start_iter, course.max_iter)
    return results


def _course(cfg: DictConfig, records: list[dict]) -> Course:
    schedule = build(cfg, "lr_multiplier")
    if not isinstance(schedule, ParamScheduler):
        raise InputError(
            f"The config's lr_multiplier is a {type(schedule).__name__}; a ParamScheduler of "
            "fvcore is needed, such as MultiStepParamScheduler."
        )
    settings = Settings.of(
        records,
        schedule,
        batch_size=cfg.dataloader.train.total_batch_size,
        max_iter=cfg.train.max_iter,
        epochs=cfg.train.epochs,
    )
    return Course(settings, schedule)


def _scale_learning_rate(cfg: DictConfig) -> None:
    """Goyal et al. (arXiv 1706.02677): k times the batch, k times the learning rate."""
    scaling = cfg.train.auto_scale_lr
    batch_size = cfg.dataloader.train.total_batch_size
    if scaling.enabled and batch_size != scaling.base_batch_size:
        before = cfg.optimizer.lr
        cfg.optimizer.lr = before * batch_size / scaling.base_batch_size
        logger.info(
            f"train.auto_scale_lr: optimizer.lr is {cfg.optimizer.lr:.3g} instead of {before:.3g}, "
            f"for batches of {batch_size} instead of {scaling.base_batch_size} images."
        )


def _show_predictions(cfg: DictConfig, model: nn.Module, storage: EventStorage) -> None:
    """Hand some pictures of validation images to the writers."""
    pictures = cfg.train.pictures
    if not pictures.tensorboard:
        return
    for data_set in evaluated_sets(cfg):
        drawn = predictions(
            inference_copy(model),
            build_loader(cfg, data_set),
            data_set,
            count=pictures.tensorboard,
            score_threshold=pictures.score_threshold,
        )
        for name, image in drawn:
            tag = f"validation{label(cfg, data_set)}/{name}"
            storage.put_image(tag, image.transpose(2, 0, 1))
