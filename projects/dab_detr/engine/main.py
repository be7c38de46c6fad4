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
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dab_detr.allocator import keep_freed_memory
from dab_detr.checkpoint.checkpointer import BEST_FILE, Checkpointer
from dab_detr.config import config_file, get_config
from dab_detr.engine.checks import check, device_of
from dab_detr.engine.datasets import (
    check_test_records,
    class_names,
    dataset_names,
    use_own_data,
)
from dab_detr.engine.evaluation import RESULTS_FILE, evaluate, format_results
from dab_detr.engine.interruption import Interruption, TrainingStopped
from dab_detr.engine.loader import build
from dab_detr.engine.processes import joined_workers, require_equal_weights, signals_for_children
from dab_detr.engine.training import train
from dab_detr.errors import InputError
from dab_detr.inference.copy import inference_copy
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
        check(cfg, args)
        if args.num_gpus * args.num_machines == 1:
            with joined_workers(device_of(cfg)):
                return _run_worker(args, cfg)
    except InputError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _stopped(signal.SIGINT, None)
    if device_of(cfg).type == "cpu":
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
            if error.exit_code < 0:
                # a signal that the worker did not catch
                return _stopped(-error.exit_code, None)
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


def _run_process(args: argparse.Namespace) -> None:
    """One of several processes: it loads the config itself, with the data sets it registers."""
    try:
        code = _run_worker(args, config_of(args))
    except KeyboardInterrupt:
        # PyTorch would end the process as if all were well
        code = 128 + signal.SIGINT
        if comm.is_main_process():
            _stopped(signal.SIGINT, None)
    if code:
        sys.exit(code)


def _run_worker(args: argparse.Namespace, cfg: DictConfig) -> int:
    """Train or evaluate in this process; returns the exit code."""
    try:
        device = device_of(cfg)
        default_setup(cfg, args)
        # Detectron2 sets up its own loggers and fvcore's only
        setup_logger(cfg.train.output_dir, comm.get_rank(), name="dab_detr").setLevel(logging.INFO)
        logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_sentence)
        if device.type == "cpu":
            if cfg.train.keep_freed_memory:
                keep_freed_memory()
            if cfg.train.device == "auto":
                logger.info("No GPU was found: running on the CPU.")
        model = build(cfg, "model").to(device)
        if args.eval_only:
            check_test_records(cfg)
            names = class_names(cfg, "test", model)
            Checkpointer(model, complete=True, class_names=names).load(cfg.train.init_checkpoint)
            require_equal_weights(model)
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
            inference_copy(model),
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
