"""Builds the config from the command line."""

import argparse
import os

from omegaconf import DictConfig, OmegaConf

from dab_detr.config import copy_config, get_config
from dab_detr.data.datasets import register_custom_coco, use_checked_data
from dab_detr.engine.checks import check_sections


def setup_config(args: argparse.Namespace) -> DictConfig:
    """The config with overrides and defaults; without the data sets of the command line."""
    cfg = get_config(args.config_file, args.opts)
    check_sections(cfg)
    if "train" in cfg:
        # a user's config may leave out keys with default values
        cfg.train = OmegaConf.merge(get_config("common/train.py").train, cfg.train)
        # other commands have no such option
        if getattr(args, "weights", None) is not None:
            cfg.train.init_checkpoint = args.weights
        for key in ("output_dir", "init_checkpoint"):
            # shells do not expand the ~ of key=~/folder
            if isinstance(cfg.train[key], str):
                cfg.train[key] = os.path.expanduser(cfg.train[key])
    return cfg


def add_custom_data(cfg: DictConfig, args: argparse.Namespace) -> DictConfig:
    """Register the data sets of the command line; returns a config that uses them.

    All its data sets will be checked by this project's code. Without test data, the evaluator is
    removed.

    Args:
        cfg: a complete config; it is not changed.
    """
    cfg = copy_config(cfg)
    if args.train_data or args.val_data:
        chosen = any(option.startswith("model.num_classes=") for option in args.opts)
        cfg = register_custom_coco(cfg, args.train_data, args.val_data, set_classes=not chosen)
        named = any(option.startswith("dataloader.test.dataset.names=") for option in args.opts)
        if args.train_data and not (args.val_data or named):
            # the config's own test data have other classes
            cfg.dataloader.test = None
    if "dataloader" in cfg and cfg.dataloader.get("test") is None:
        # it refers to the test data
        cfg.dataloader.evaluator = None
    use_checked_data(cfg)
    return cfg
