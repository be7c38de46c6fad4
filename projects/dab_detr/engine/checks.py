"""Checks on the config and the command line, before anything slow starts."""

import argparse
import os

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dab_detr.compiling import require_compiler
from dab_detr.config import get_config
from dab_detr.data.validation import check_datasets
from dab_detr.engine.launching.processes import launched_processes
from dab_detr.engine.ranges import check_ranges
from dab_detr.engine.trainer import AMP_DTYPES
from dab_detr.errors import InputError
from dab_detr.evaluation.test_sets import evaluated_sets


def device_of(cfg: DictConfig) -> torch.device:
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


def check(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Refuse what cannot work before processes are started and logs written.

    Args:
        cfg: the whole config. args: what the command line says.

    Raises:
        InputError: naming the key, file or option.
    """
    for section in ("model", "dataloader", "train", "optimizer", "lr_multiplier"):
        if section not in cfg:
            raise InputError(f"The config {args.config_file} has no section {section!r}.")
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The config {args.config_file} refers to nothing: {reason}.") from error
    _check_kinds(cfg)
    check_ranges(cfg)
    device = device_of(cfg)
    if device.type == "cuda" and args.num_gpus > torch.cuda.device_count():
        raise InputError(
            f"--num-gpus {args.num_gpus} asks for more GPUs than the {torch.cuda.device_count()} "
            "of this machine."
        )
    if cfg.train.amp.enabled and cfg.train.amp.dtype not in AMP_DTYPES:
        raise InputError(
            f"train.amp.dtype is {cfg.train.amp.dtype!r}; choose one of {', '.join(AMP_DTYPES)}."
        )
    if args.eval_only and not evaluated_sets(cfg):
        raise InputError(
            "--eval-only needs data to evaluate on, and the config's dataloader has no test or no "
            "evaluator."
        )
    if not args.eval_only:
        launched = launched_processes(args)
        _check_length(cfg, launched if launched > 1 else args.num_gpus * args.num_machines)
        if cfg.train.compile:
            require_compiler(device, "train.compile=True")
    check_datasets(cfg, ("test",) if args.eval_only else ("train", "test"))
    checkpoint = cfg.train.init_checkpoint
    if checkpoint and "://" not in checkpoint and not os.path.exists(checkpoint):
        raise InputError(f"There is no checkpoint file {checkpoint} (train.init_checkpoint).")
    if args.eval_only and not checkpoint:
        raise InputError("--eval-only needs weights: give train.init_checkpoint=FILE.")


def _check_length(cfg: DictConfig, num_workers: int) -> None:
    """The numbers that decide how long a training is have to fit together."""
    batch_size = cfg.dataloader.train.total_batch_size
    accumulate = cfg.train.accumulate
    if batch_size % (num_workers * accumulate):
        parts = f"the number of processes, {num_workers}"
        if accumulate > 1:
            parts += f", times train.accumulate, {accumulate}"
        raise InputError(
            f"dataloader.train.total_batch_size is {batch_size!r}; a positive multiple of {parts}, "
            "is needed."
        )
    if cfg.train.max_iter is None and cfg.train.epochs is None:
        raise InputError("train.max_iter or train.epochs has to say how long to train.")


def _check_kinds(cfg: DictConfig) -> None:
    """The values of ``train`` are of the kind that those of configs/common/train.py are."""
    defaults = get_config("common/train.py").train

    def visit(default: DictConfig, given: DictConfig, prefix: str) -> None:
        for key, standard in default.items():
            value, name = given[key], f"{prefix}.{key}"
            if isinstance(standard, DictConfig):
                if not isinstance(value, DictConfig):
                    first = next(iter(standard))
                    raise InputError(
                        f"{name} is {value!r}, but it has parts: e.g. {name}.{first}={value}."
                    )
                visit(standard, value, name)
            elif isinstance(standard, ListConfig):
                if not isinstance(value, ListConfig):
                    raise InputError(f"{name} is {value!r}; a list is needed.")
            elif isinstance(standard, bool):
                if not isinstance(value, bool):
                    raise InputError(f"{name} is {value!r}; True or False is needed.")
            elif isinstance(standard, str) and not isinstance(value, str):
                raise InputError(f"{name} is {value!r}; text is needed.")

    visit(defaults, cfg.train, "train")
    if os.path.isfile(cfg.train.output_dir):
        raise InputError(f"train.output_dir is {cfg.train.output_dir}, which is a file.")
