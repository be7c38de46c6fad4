"""The program behind ``train_net.py``: arguments and checks first, then training or evaluation."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from dab_detr.checkpoint import Checkpointer
from dab_detr.config import config_file, get_config
from dab_detr.engine.datasets import check_datasets
from dab_detr.engine.evaluation import RESULTS_FILE, evaluate, format_results
from dab_detr.engine.trainer import AMP_DTYPES
from dab_detr.engine.training import build, train
from dab_detr.errors import InputError
from dab_detr.visualization.curves import draw_curves
from dab_detr.visualization.predictions import draw_predictions

logger = logging.getLogger(__name__)

_EPILOG = """\
Train:      train_net.py --config-file configs/dab_detr_r50_50ep.py --num-gpus 8
Continue:   the same with --resume
Evaluate:   the same with --eval-only train.init_checkpoint=FILE
Override:   any key of the config as key=value, e.g. train.max_iter=1000 model.num_patterns=3
Ends with 0 when all went well, 1 for wrong files, keys or values, 2 for wrong usage.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = default_argument_parser(epilog=_EPILOG)
    parser.description = "Train or evaluate DAB-DETR from a LazyConfig file."
    args = parser.parse_args(arguments)
    if not args.config_file:
        parser.error("--config-file is missing.")
    if args.num_gpus < 1 or args.num_machines < 1:
        parser.error("--num-gpus and --num-machines have to be at least 1.")
    try:
        # what follows opens the file itself, also from another process
        args.config_file = config_file(args.config_file)
        cfg = get_config(args.config_file, args.opts)
        _check(cfg, args)
    except InputError as error:
        return _fail(error)
    if args.num_gpus * args.num_machines == 1:
        return _run_worker(args, cfg)
    if _device(cfg).type == "cpu":
        # launch() takes any GPU that it sees for one to use
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
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


def _fail(error: Exception) -> int:
    print(f"train_net.py: {error}", file=sys.stderr)
    return 1


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
    if not args.eval_only:
        _check_length(cfg, args.num_gpus * args.num_machines)
    check_datasets(cfg, ("test",) if args.eval_only else ("train", "test"))
    checkpoint = cfg.train.init_checkpoint
    if checkpoint and "://" not in checkpoint and not os.path.exists(checkpoint):
        raise InputError(f"There is no checkpoint file {checkpoint} (train.init_checkpoint).")
    if args.eval_only and not checkpoint:
        raise InputError("--eval-only needs weights: give train.init_checkpoint=FILE.")


def _check_length(cfg: DictConfig, num_workers: int) -> None:
    """The numbers that decide how long a training is have to be such numbers."""
    batch_size = cfg.dataloader.train.total_batch_size
    if not isinstance(batch_size, int) or batch_size < 1 or batch_size % num_workers:
        raise InputError(
            f"dataloader.train.total_batch_size is {batch_size!r}; a positive multiple of the "
            f"number of processes, {num_workers}, is needed."
        )
    for key, kind in (("max_iter", int), ("epochs", int | float)):
        value = cfg.train[key]
        if value is not None and (not isinstance(value, kind) or value <= 0):
            raise InputError(f"train.{key} is {value!r}; a positive number is needed (or null).")
    if cfg.train.max_iter is None and cfg.train.epochs is None:
        raise InputError("train.max_iter or train.epochs has to say how long to train.")


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
    code = _run_worker(args, get_config(args.config_file, args.opts))
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
        if device.type == "cpu" and cfg.train.device == "auto":
            logger.info("No GPU was found: running on the CPU.")
        model = build(cfg, "model").to(device)
        if args.eval_only:
            Checkpointer(model, complete=True).load(cfg.train.init_checkpoint)
            results = evaluate(cfg, model)
        else:
            results = train(cfg, model, device, resume=args.resume)
        if comm.is_main_process():
            _report(cfg, model, results)
    except (InputError, FloatingPointError) as error:
        return _fail(error)
    return 0


def _report(cfg: DictConfig, model: nn.Module, results: dict) -> None:
    """Pictures, the table, and where everything lies."""
    folder = Path(cfg.train.output_dir)
    draw_curves(folder / "metrics.json", folder / "training_curve.png")
    pictures = cfg.train.pictures
    if pictures.count:
        draw_predictions(
            model,
            instantiate(cfg.dataloader.test),
            cfg.dataloader.evaluator.dataset_name,
            folder / "predictions",
            count=pictures.count,
            score_threshold=pictures.score_threshold,
        )
    print(f"\n{format_results(results)}\n\nIn {folder}:")
    for name, what in (
        ("model_final.pth", "weights, optimizer and schedule at the end"),
        (RESULTS_FILE, "these results"),
        ("metrics.json", "losses, learning rates and evaluations by step"),
        ("training_curve.png", "the same as a picture"),
        ("predictions", "pictures: predictions beside the ground truth"),
        ("log.txt", "everything that was logged"),
    ):
        if (folder / name).exists():
            print(f"  {name:20} {what}")
