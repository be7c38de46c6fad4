"""The config that the command line describes."""

import argparse
import os

from omegaconf import DictConfig, OmegaConf

from dab_detr.config import copy_config, get_config
from dab_detr.data.datasets import use_checked_data, use_own_data
from dab_detr.engine.checks import check_sections


def config_of(args: argparse.Namespace) -> DictConfig:
    """The config with its overrides; the command line's own data are not in it yet."""
    cfg = get_config(args.config_file, args.opts)
    check_sections(cfg)
    if "train" in cfg:
        # a config of one's own need not name what it leaves alone
        cfg.train = OmegaConf.merge(get_config("common/train.py").train, cfg.train)
        for key in ("output_dir", "init_checkpoint"):
            # shells leave the ~ of key=~/folder as it is
            if isinstance(cfg.train[key], str):
                cfg.train[key] = os.path.expanduser(cfg.train[key])
    return cfg


def add_own_data(cfg: DictConfig, args: argparse.Namespace) -> DictConfig:
    """Register the data of the command line; returns a config that trains and evaluates on them.

    The data sets that it names will be read by this project's code. Without data to evaluate on
    there is no evaluator either.

    Args:
        cfg: stays as it is.
    """
    cfg = copy_config(cfg)
    if args.train_data or args.val_data:
        chosen = any(option.startswith("model.num_classes=") for option in args.opts)
        cfg = use_own_data(cfg, args.train_data, args.val_data, set_classes=not chosen)
        named = any(option.startswith("dataloader.test.dataset.names=") for option in args.opts)
        if args.train_data and not (args.val_data or named):
            # the config's own are of other classes
            cfg.dataloader.test = None
    if "dataloader" in cfg and cfg.dataloader.get("test") is None:
        # it refers to the test data
        cfg.dataloader.evaluator = None
    use_checked_data(cfg)
    return cfg
