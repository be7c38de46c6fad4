"""The program ``train_net.py``: arguments, checks, then training or evaluation."""

import argparse
import errno
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dab_detr.allocator import keep_freed_memory
from dab_detr.checkpoint.checkpointer import BEST_FILE
from dab_detr.config import build, config_file
from dab_detr.data.datasets import class_names
from dab_detr.data.validation import check_classes, check_test_records
from dab_detr.engine.arguments import checked_arguments
from dab_detr.engine.checks import check, device_of
from dab_detr.engine.launching import logs
from dab_detr.engine.launching.interruption import Interruption, TrainingStopped
from dab_detr.engine.launching.output_folder import OutputFolder
from dab_detr.engine.launching.processes import (
    init_distributed,
    is_first_process,
    launched_processes,
    require_equal_weights,
    signals_for_children,
)
from dab_detr.engine.setup import add_custom_data, setup_config
from dab_detr.engine.training import train
from dab_detr.errors import InputError
from dab_detr.evaluation.evaluate import RESULTS_FILE, evaluate, format_results
from dab_detr.evaluation.test_sets import (
    build_loader,
    check_evaluation,
    evaluated_sets,
    label,
)
from dab_detr.evaluation.weights import (
    fast_copy,
    load_exported_to_evaluate,
    load_to_evaluate,
)
from dab_detr.files import cannot_be_written
from dab_detr.inference.runtimes import is_exported
from dab_detr.visualization.curves import draw_curves
from dab_detr.visualization.predictions import draw_predictions

logger = logging.getLogger(__name__)

_CANNOT_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM
}  # fmt: skip


def main(
    arguments: Sequence[str] | None = None,
    *,
    program: str = "train_net.py",
    exit_now: Callable[[int], None] = os._exit,
) -> int:
    """Run the command line; returns the exit code.

    Args:
        program: name of the program, for messages.
        exit_now: ends this process with an exit code if torchrun or a cluster has started several
            processes, another one has stopped, and this one cannot return as it waits for it.
    """
    args = checked_arguments(arguments, program)
    # if the log cannot be written, e.g. on a full disk, do not print a traceback for every line
    logging.raiseExceptions = False
    try:
        # other processes open the file, too
        args.config_file = config_file(args.config_file)
        cfg = setup_config(args)
        launched = launched_processes(args)
        folder = OmegaConf.select(cfg, "train.output_dir")
        if is_first_process(args) and isinstance(folder, str):
            OutputFolder(folder).require_free()
        cfg = add_custom_data(cfg, args)
        check(cfg, args)
        if launched > 1 or args.num_gpus * args.num_machines == 1:
            with init_distributed(device_of(cfg)):
                return _run_worker(args, cfg, exit_now)
    except InputError as error:
        return _fail(args, error)
    except KeyboardInterrupt:
        return _stopped(args, signal.SIGINT)
    if device_of(cfg).type == "cpu":
        # launch() would use any GPU that it sees
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # it logs which processes it ends after one has ended
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with signals_for_children():
        try:
            launch(
                _run_process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url or "auto",
                args=(args,),
            )
        except torch.multiprocessing.ProcessExitedException as error:
            if error.exit_code < 0:
                # a signal that the process has not handled
                return _stopped(
                    args,
                    -error.exit_code,
                    f" It has ended process {error.error_index}, without which the others cannot "
                    "continue. --resume continues a training from its last checkpoint.",
                )
            # the process has printed the reason
            return error.exit_code
    return 0


def _fail(args: argparse.Namespace, error: Exception) -> int:
    print(f"{args.program}: {error}", file=sys.stderr)
    return 1


def _stopped(args: argparse.Namespace, signum: int, how_to_continue: str = "") -> int:
    name = signal.Signals(signum).name
    print(f"{args.program}: Stopped by {name}.{how_to_continue}", file=sys.stderr)
    return 128 + signum


def _run_process(args: argparse.Namespace) -> None:
    """One of several processes; it loads the config itself, which registers data sets."""
    # this process was spawned, and by default so would be its data workers, which then import
    # everything again, at the start and at each evaluation
    multiprocessing.set_start_method(None, force=True)
    try:
        cfg = setup_config(args)
        cfg = add_custom_data(cfg, args)
        code = _run_worker(args, cfg)
    except KeyboardInterrupt:
        # PyTorch would end the process with exit code 0
        code = 128 + signal.SIGINT
        if comm.is_main_process():
            _stopped(args, signal.SIGINT)
    if code:
        sys.exit(code)


def _run_worker(
    args: argparse.Namespace, cfg: DictConfig, exit_now: Callable[[int], None] = os._exit
) -> int:
    """Train or evaluate in this process; returns the exit code."""
    with Interruption(exit_now) as interruption:
        try:
            code = _run_to_its_end(args, cfg, interruption)
        except TrainingStopped as stop:
            code = interruption.leave(128 + stop.stop_signal)
            if comm.is_main_process():
                _stopped(
                    args,
                    code - 128,
                    " Run the same command to evaluate again."
                    if args.eval_only
                    else f" The training is saved in {cfg.train.output_dir}; run the same command "
                    "with --resume to continue.",
                )
            return code
        return interruption.leave(code)


def _run_to_its_end(args: argparse.Namespace, cfg: DictConfig, interruption: Interruption) -> int:
    output = OutputFolder(cfg.train.output_dir)
    try:
        with output.held():
            _run(args, cfg, output, interruption)
    except (InputError, FloatingPointError) as error:
        return _fail(args, error)
    except OSError as error:
        # from a file that is appended to, such as metrics.json
        if error.errno not in _CANNOT_WRITE:
            raise
        return _fail(args, cannot_be_written(error.filename or cfg.train.output_dir, error))
    return 0


def _run(
    args: argparse.Namespace, cfg: DictConfig, output: OutputFolder, interruption: Interruption
) -> None:
    device = device_of(cfg)
    logs.set_up(cfg, args)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_sentence)
    if device.type == "cpu":
        if cfg.train.keep_freed_memory:
            keep_freed_memory()
        if cfg.train.device == "auto":
            logger.info("No GPU was found: running on the CPU.")
    if args.eval_only:
        with interruption.interruptible():
            cfg, model, results = _evaluate(cfg, device)
    else:
        model = build(cfg, "model").to(device)
        results = train(
            cfg, model, device, resume=args.resume, interruption=interruption, output=output
        )
    if comm.is_main_process():
        with interruption.interruptible():
            _report(cfg, model, results)


def _evaluate(cfg: DictConfig, device: torch.device) -> tuple[DictConfig, nn.Module, dict]:
    """Evaluate; returns the config that was used, the model, and the results."""
    exported = is_exported(cfg.train.init_checkpoint)
    if exported:
        cfg, model = load_exported_to_evaluate(cfg)
    else:
        model = build(cfg, "model").to(device)
        check_classes(cfg, model, ("test",))
    check_test_records(cfg)
    check_evaluation(cfg)
    averaged = None
    if not exported:
        averaged = load_to_evaluate(cfg, model, class_names(cfg, "test", model))
    require_equal_weights(model)
    return cfg, model, evaluate(cfg, model, averaged=averaged)


def _has_no_sentence(record: logging.LogRecord) -> bool:
    """A filter for Detectron2's traceback of an error whose message is printed anyway."""
    kind = record.exc_info[0] if record.exc_info else None
    if kind is None or issubclass(kind, InputError | FloatingPointError):
        return kind is None
    return getattr(record.exc_info[1], "errno", None) not in _CANNOT_WRITE


def _report(cfg: DictConfig, model: nn.Module, results: dict) -> None:
    """Draw pictures; print the results and the files."""
    folder = Path(cfg.train.output_dir)
    draw_curves(folder / "metrics.json", folder / "training_curve.png")
    pictures = cfg.train.pictures
    if pictures.count:
        fast = fast_copy(model)
        for data_set in evaluated_sets(cfg):
            draw_predictions(
                fast,
                build_loader(cfg, data_set),
                data_set,
                f"{folder}/predictions{label(cfg, data_set)}",
                count=pictures.count,
                score_threshold=pictures.score_threshold,
            )
    table = f"\n{format_results(results)}\n" if results else ""
    print(f"{table}\nIn {folder}:")
    for name, what in (
        ("model_final.pth", "weights, optimizer and schedule at the end"),
        (BEST_FILE, "the weights with the best AP"),
        (RESULTS_FILE, "these results"),
        ("metrics.json", "losses, learning rates and evaluations by step"),
        ("training_curve.png", "their curves"),
        ("predictions", "pictures of predictions beside the ground truth"),
        ("log.txt", "the whole log"),
    ):
        if (folder / name).exists():
            print(f"  {name:20} {what}")
