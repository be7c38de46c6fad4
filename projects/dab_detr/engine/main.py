"""The program behind ``train_net.py``: arguments and checks first, then training or evaluation."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dab_detr.checkpoint.checkpointer import BEST_FILE, Checkpointer
from dab_detr.config import config_file, get_config
from dab_detr.engine.coco_evaluator import find_cocoeval
from dab_detr.engine.datasets import check_datasets, dataset_names, use_own_data
from dab_detr.engine.evaluation import RESULTS_FILE, evaluate, format_results
from dab_detr.engine.interruption import Interruption, TrainingStopped
from dab_detr.engine.loader import build
from dab_detr.engine.processes import joined_workers, signals_for_children
from dab_detr.engine.trainer import AMP_DTYPES
from dab_detr.engine.training import train
from dab_detr.errors import InputError
from dab_detr.visualization.curves import draw_curves
from dab_detr.visualization.predictions import draw_predictions

logger = logging.getLogger(__name__)

_EPILOG = """\
Train:      train_net.py --config-file configs/dab_detr_r50_50ep.py --num-gpus 8
Own data:   the same with --train-data IMAGES_DIR ANN.json --val-data IMAGES_DIR ANN.json
Continue:   the same with --resume
Evaluate:   the same with --eval-only train.init_checkpoint=FILE
Override:   any key of the config as key=value, e.g. train.max_iter=1000 model.num_patterns=3
torchrun starts it as well. Ends with 0 when all went well, 1 for wrong files, keys or values, 2 for
wrong usage, 128 + the signal's number after SIGTERM or Ctrl-C, on which it saves and stops.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argument_parser()
    args = parser.parse_args(arguments)
    if not args.config_file:
        parser.error("--config-file is missing.")
    if args.num_gpus < 1 or args.num_machines < 1:
        parser.error("--num-gpus and --num-machines have to be at least 1.")
    if args.train_data and not args.val_data:
        parser.error("--train-data needs --val-data, which has the same classes.")
    if args.val_data and not (args.train_data or args.eval_only):
        parser.error("--val-data needs --train-data to train on.")
    try:
        # what follows opens the file itself, also from another process
        args.config_file = config_file(args.config_file)
        cfg = config_of(args)
        _check(cfg, args)
        if args.num_gpus * args.num_machines == 1:
            with joined_workers(_device(cfg)):
                return _run_worker(args, cfg)
    except InputError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT, None)
    if _device(cfg).type == "cpu":
        # launch() takes any GPU that it sees for one to use
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with signals_for_children():
        try:
            launch(
                _run_process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except torch.multiprocessing.ProcessExitedException as error:
            # the worker has said why
            return error.exit_code
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The options of ``train_net.py``: those of Detectron2's programs, and one's own data."""
    parser = default_argument_parser(epilog=_EPILOG)
    parser.description = "Train or evaluate DAB-DETR from a LazyConfig file."
    data_arguments(parser)
    return parser


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--train-data`` and ``--val-data``, for which :func:`config_of` looks."""
    for option, use in (("--train-data", "train on"), ("--val-data", "evaluate on")):
        parser.add_argument(
            option,
            nargs=2,
            metavar=("IMAGES_DIR", "ANN.json"),
            help=f"{use} these images with annotations in COCO's format",
        )


def config_of(args: argparse.Namespace) -> DictConfig:
    """The config with its overrides and the data of the command line, which are registered."""
    cfg = get_config(args.config_file, args.opts)
    if "train" in cfg:
        # a config of one's own need not name what it leaves alone
        cfg.train = OmegaConf.merge(get_config("common/train.py").train, cfg.train)
    if args.train_data or args.val_data:
        chosen = any(option.startswith("model.num_classes=") for option in args.opts)
        use_own_data(cfg, args.train_data, args.val_data, set_classes=not chosen)
    return cfg


def _fail(error: Exception) -> int:
    print(f"train_net.py: {error}", file=sys.stderr)
    return 1


def _stopped(signum: int, folder: str | None) -> int:
    saved = (
        f" The training is saved in {folder}; the same command with --resume goes on."
        if folder
        else ""
    )
    print(f"train_net.py: Stopped by {signal.Signals(signum).name}.{saved}", file=sys.stderr)
    return 128 + signum


def _check(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Refuse what cannot work before processes are started and logs written."""
    for section in ("model", "dataloader", "train", "optimizer", "lr_multiplier"):
        if section not in cfg:
            raise InputError(f"The config {args.config_file} has no section {section!r}.")
    device = _device(cfg)
    if device.type == "cuda" and args.num_gpus > torch.cuda.device_count():
        raise InputError(
            f"--num-gpus {args.num_gpus} asks for more GPUs than the {torch.cuda.device_count()} "
            "of this machine."
        )
    if cfg.train.amp.enabled and cfg.train.amp.dtype not in AMP_DTYPES:
        raise InputError(
            f"train.amp.dtype is {cfg.train.amp.dtype!r}; choose one of {', '.join(AMP_DTYPES)}."
        )
    backend = cfg.dataloader.evaluator.get("backend")
    if backend is not None:
        try:
            find_cocoeval(backend)
        except ValueError as error:
            raise InputError(f"dataloader.evaluator.backend: {error}") from error
    if not args.eval_only:
        workers = int(os.environ.get("WORLD_SIZE", args.num_gpus * args.num_machines))
        _check_length(cfg, workers)
        _check_training(cfg)
    check_datasets(cfg, ("test",) if args.eval_only else ("train", "test"))
    checkpoint = cfg.train.init_checkpoint
    if checkpoint and "://" not in checkpoint and not os.path.exists(checkpoint):
        raise InputError(f"There is no checkpoint file {checkpoint} (train.init_checkpoint).")
    if args.eval_only and not checkpoint:
        raise InputError("--eval-only needs weights: give train.init_checkpoint=FILE.")


def _check_length(cfg: DictConfig, num_workers: int) -> None:
    """The numbers that decide how long a training is have to be such numbers."""
    batch_size = cfg.dataloader.train.total_batch_size
    accumulate = cfg.train.accumulate
    if not _is_whole(accumulate, 1):
        raise InputError(f"train.accumulate is {accumulate!r}; a whole number from 1 is needed.")
    if not _is_whole(batch_size, 1) or batch_size % (num_workers * accumulate):
        parts = f"the number of processes, {num_workers}"
        if accumulate > 1:
            parts += f", times train.accumulate, {accumulate}"
        raise InputError(
            f"dataloader.train.total_batch_size is {batch_size!r}; a positive multiple of {parts}, "
            "is needed."
        )
    for key, kind in (("max_iter", int), ("epochs", int | float)):
        value = cfg.train[key]
        if value is not None and (not isinstance(value, kind) or value <= 0):
            raise InputError(f"train.{key} is {value!r}; a positive number is needed (or null).")
    if cfg.train.max_iter is None and cfg.train.epochs is None:
        raise InputError("train.max_iter or train.epochs has to say how long to train.")


def _check_training(cfg: DictConfig) -> None:
    """Numbers that would otherwise be found wrong in the middle of a training."""
    for key in ("max_unreadable_images", "max_nonfinite_steps"):
        if not _is_whole(cfg.train[key], 0):
            raise InputError(f"train.{key} is {cfg.train[key]!r}; a whole number from 0 is needed.")
    periods = {"log_period": cfg.train.log_period, "eval_period": cfg.train.eval_period}
    periods["checkpointer.period"] = cfg.train.checkpointer.period
    for key, value in periods.items():
        if not (_is_whole(value, 1) or (value is None and key != "log_period")):
            raise InputError(f"train.{key} is {value!r}; a number of steps from 1 is needed.")
    norm = cfg.train.clip_grad.max_norm
    if not isinstance(norm, int | float) or not norm >= 0:
        raise InputError(f"train.clip_grad.max_norm is {norm!r}; a number from 0 is needed.")
    scaling = cfg.train.auto_scale_lr
    if scaling.enabled and not _is_whole(scaling.base_batch_size, 1):
        raise InputError(
            f"train.auto_scale_lr.base_batch_size is {scaling.base_batch_size!r}; a whole number "
            "from 1 is needed."
        )
    if not isinstance(cfg.train.seed, int):
        raise InputError(f"train.seed is {cfg.train.seed!r}; a whole number is needed.")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _device(cfg: DictConfig) -> torch.device:
    """``train.device``, where ``auto`` is a GPU if there is one."""
    name = cfg.train.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"train.device is {name!r}; choose auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"train.device is {name!r}, but PyTorch sees no GPU; choose auto or cpu.")
    return device


def _run_process(args: argparse.Namespace) -> None:
    """One of several processes: it loads the config itself, with the data sets it registers."""
    code = _run_worker(args, config_of(args))
    if code:
        sys.exit(code)


def _run_worker(args: argparse.Namespace, cfg: DictConfig) -> int:
    """Train or evaluate in this process; returns the exit code."""
    try:
        device = _device(cfg)
        default_setup(cfg, args)
        # Detectron2 sets up its own loggers and fvcore's only
        logging.getLogger("dab_detr").setLevel(logging.INFO)
        logging.getLogger("dab_detr").handlers = logging.getLogger("detectron2").handlers
        logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_sentence)
        if device.type == "cpu" and cfg.train.device == "auto":
            logger.info("No GPU was found: running on the CPU.")
        model = build(cfg, "model").to(device)
        if args.eval_only:
            Checkpointer(model, complete=True).load(cfg.train.init_checkpoint)
            results = evaluate(cfg, model)
        else:
            with Interruption() as interruption:
                results = train(cfg, model, device, resume=args.resume, interruption=interruption)
        if comm.is_main_process():
            _report(cfg, model, results)
    except (InputError, FloatingPointError) as error:
        return _fail(error)
    except TrainingStopped as stop:
        if comm.is_main_process():
            _stopped(stop.signum, cfg.train.output_dir)
        return 128 + stop.signum
    return 0


def _has_no_sentence(record: logging.LogRecord) -> bool:
    """Keeps Detectron2 from logging the traceback of an error that is told in a sentence."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, InputError | FloatingPointError)


def _report(cfg: DictConfig, model: nn.Module, results: dict) -> None:
    """Pictures, the table, and where everything lies."""
    folder = Path(cfg.train.output_dir)
    draw_curves(folder / "metrics.json", folder / "training_curve.png")
    pictures = cfg.train.pictures
    if pictures.count:
        draw_predictions(
            model,
            instantiate(cfg.dataloader.test),
            dataset_names(cfg, "test")[0],
            folder / "predictions",
            count=pictures.count,
            score_threshold=pictures.score_threshold,
        )
    print(f"\n{format_results(results)}\n\nIn {folder}:")
    for name, what in (
        ("model_final.pth", "weights, optimizer and schedule at the end"),
        (BEST_FILE, "the weights with the best AP"),
        (RESULTS_FILE, "these results"),
        ("metrics.json", "losses, learning rates and evaluations by step"),
        ("training_curve.png", "the same as a picture"),
        ("predictions", "pictures: predictions beside the ground truth"),
        ("log.txt", "everything that was logged"),
    ):
        if (folder / name).exists():
            print(f"  {name:20} {what}")
