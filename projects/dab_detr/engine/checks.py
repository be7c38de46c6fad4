"""Checks the config and the command line before anything slow starts."""

import argparse
import inspect
import os

import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from dab_detr.checkpoint.addresses import require_known
from dab_detr.compiling import require_compiler
from dab_detr.config import get_config, target_of
from dab_detr.data.validation import check_datasets
from dab_detr.engine.launching.processes import launched_processes
from dab_detr.engine.ranges import check_ranges
from dab_detr.engine.trainer import AMP_DTYPES
from dab_detr.errors import InputError, one_line
from dab_detr.evaluation.test_sets import evaluated_sets
from dab_detr.inference.runtimes import is_exported

_SECTIONS = (
    "model", "dataloader", "dataloader.train", "dataloader.train.dataset", "optimizer",
    "optimizer.params", "lr_multiplier", "train"
)  # fmt: skip


def device_of(cfg: DictConfig) -> torch.device:
    """The device of ``train.device``; ``auto`` is a GPU if there is one."""
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
    """Refuse wrong settings before processes are started and logs are written.

    Args:
        cfg: the complete config. args: the command line.

    Raises:
        InputError: naming the key, file or option.
    """
    for section in ("model", "dataloader", "train", "optimizer", "lr_multiplier"):
        if section not in cfg:
            raise InputError(f"The config {args.config_file} has no section {section!r}.")
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = one_line(error, with_type=False)
        raise InputError(
            f"The config {args.config_file} has an invalid reference: {reason}."
        ) from error
    _check_kinds(cfg)
    _check_switches(cfg)
    _check_image_formats(cfg)
    check_ranges(cfg)
    device = device_of(cfg)
    if device.type == "cuda" and args.num_gpus > torch.cuda.device_count():
        raise InputError(
            f"--num-gpus is {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPUs."
        )
    if cfg.train.amp.enabled and cfg.train.amp.dtype not in AMP_DTYPES:
        raise InputError(
            f"train.amp.dtype is {cfg.train.amp.dtype!r}; choose one of {', '.join(AMP_DTYPES)}."
        )
    if args.eval_only and not evaluated_sets(cfg):
        raise InputError(
            "--eval-only needs data to evaluate on, but the config's dataloader has no test or no "
            "evaluator."
        )
    if not args.eval_only:
        launched = launched_processes(args)
        _check_length(cfg, launched if launched > 1 else args.num_gpus * args.num_machines)
        if cfg.train.compile:
            require_compiler(device, "train.compile=True")
    check_datasets(cfg, ("test",) if args.eval_only else ("train", "test"))
    checkpoint = cfg.train.init_checkpoint
    if checkpoint:
        if not args.eval_only and is_exported(checkpoint):
            raise InputError(
                f"{checkpoint} is an exported file, which cannot be trained further: give the "
                "checkpoint that it was exported from."
            )
        require_known(checkpoint)
    if args.eval_only and not checkpoint:
        raise InputError("--eval-only needs weights: give --weights FILE.")


def check_sections(cfg: DictConfig) -> None:
    """Check that the sections of a config are sections.

    Raises:
        InputError: naming the first one that is not.
    """
    for key in _SECTIONS:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if not isinstance(node, DictConfig) or name not in node:
            continue
        section = OmegaConf.select(cfg, key)
        called = name not in ("dataloader", "train") or bool(parent)
        if not isinstance(section, DictConfig) or (called and "_target_" not in section):
            needed = "a LazyCall, L(...)(...)," if called else "a section of keys"
            raise InputError(f"The config's {key} is {section!r}; {needed} is needed.")
    writers = OmegaConf.select(cfg, "train.writers")
    for index, writer in enumerate(writers if isinstance(writers, ListConfig) else ()):
        if not isinstance(writer, DictConfig):
            raise InputError(f"train.writers.{index} is {writer!r}; a LazyCall is needed.")


def _check_length(cfg: DictConfig, num_workers: int) -> None:
    """The settings of the length of a training have to be consistent."""
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
        raise InputError(
            "train.max_iter or train.epochs has to be set, the length of the training."
        )


def _check_kinds(cfg: DictConfig) -> None:
    """The values of ``train`` need the same types as those of configs/common/train.py.

    OmegaConf's structured configs would name neither the allowed values nor the key of a section to
    set, and refuse keys that a config adds for its own hooks.
    """
    defaults = get_config("common/train.py").train

    def visit(default: DictConfig, given: DictConfig, prefix: str) -> None:
        for key, standard in default.items():
            value, name = given[key], f"{prefix}.{key}"
            if isinstance(standard, DictConfig):
                if not isinstance(value, DictConfig):
                    first = next(iter(standard))
                    raise InputError(
                        f"{name} is {value!r}, but it is a section: e.g. {name}.{first}={value}."
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
    if not cfg.train.output_dir:
        raise InputError("train.output_dir is empty; set it to a folder.")
    if os.path.isfile(cfg.train.output_dir):
        raise InputError(f"train.output_dir is {cfg.train.output_dir}, which is a file.")


def _check_switches(cfg: DictConfig) -> None:
    """Arguments that our parts declare as bool need one: other values would count as True."""

    def visit(node: object, key: str) -> None:
        if isinstance(node, list):
            for index, part in enumerate(node):
                visit(part, f"{key}.{index}")
        if not isinstance(node, dict):
            return
        target = target_of(node)
        if target is not None and target.__module__.startswith("dab_detr."):
            for name, parameter in inspect.signature(target).parameters.items():
                if parameter.annotation is bool and not isinstance(node.get(name, False), bool):
                    raise InputError(f"{key}.{name} is {node[name]!r}; True or False is needed.")
        for name, part in node.items():
            visit(part, f"{key}.{name}")

    for section in ("model", "dataloader"):
        visit(OmegaConf.to_container(cfg[section], resolve=True), section)


def _check_image_formats(cfg: DictConfig) -> None:
    """The mappers' images need as many channels as the model, or one, which is repeated."""
    count = len(cfg.model.get("pixel_mean") or ())
    for part in ("train", "test"):
        key = f"dataloader.{part}.mapper.image_format"
        name = OmegaConf.select(cfg, key)
        if name is None:
            continue
        try:
            channels = convert_PIL_to_numpy(Image.new("RGB", (1, 1)), name).shape[2]
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(
                f"{key} is {name!r}; RGB, BGR, L or another of Pillow's modes is needed."
            ) from error
        if count and channels not in (1, count):
            raise InputError(
                f"{key} is {name!r}, with {channels} channels, but model.pixel_mean has {count}."
            )
