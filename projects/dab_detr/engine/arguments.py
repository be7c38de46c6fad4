"""The command line of ``train_net.py``, and the config that it describes."""

import argparse
import os
import sys
from collections.abc import Sequence

from detectron2.engine import default_argument_parser
from omegaconf import DictConfig, OmegaConf

from dab_detr.config import get_config
from dab_detr.data.datasets import use_checked_data, use_own_data

_EPILOG = """\
Train:      train_net.py --config-file configs/dab_detr_r50_50ep.py --num-gpus 8
Own data:   the same with --train-data IMAGES_DIR ANN.json --val-data IMAGES_DIR ANN.json;
            without --val-data nothing is evaluated
Continue:   the same with --resume
Evaluate:   the same with --eval-only train.init_checkpoint=FILE
Override:   any key of the config as key=value, e.g. train.max_iter=1000 model.num_patterns=3
torchrun starts it as well. Ends with 0 when all went well, 1 for wrong files, keys or values, 2 for
wrong usage, 128 + the signal's number after SIGTERM or Ctrl-C, on which it saves and stops.
"""


def argument_parser() -> argparse.ArgumentParser:
    """The options of ``train_net.py``: those of Detectron2's programs, and one's own data."""
    parser = default_argument_parser(epilog=_EPILOG)
    parser.description = "Train or evaluate DAB-DETR from a LazyConfig file."
    # Detectron2's is one port for all trainings of a user
    parser.set_defaults(dist_url=None)
    data_arguments(parser)
    return parser


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--train-data`` and ``--val-data``, for which :func:`add_own_data` looks."""
    for option, use in (("--train-data", "train on"), ("--val-data", "evaluate on")):
        parser.add_argument(
            option,
            nargs=2,
            metavar=("IMAGES_DIR", "ANN.json"),
            help=f"{use} these images with annotations in COCO's format",
        )


def parse_arguments(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    namespace: argparse.Namespace | None = None,
) -> argparse.Namespace:
    """``parser.parse_args``, with options before, between and after the overrides.

    Args:
        parser: takes the overrides as ``opts``, as that of :func:`argument_parser` does.
        arguments, namespace: as of ``parse_args``.
    """
    rest = [x for x in (sys.argv[1:] if arguments is None else arguments) if x != "--"]
    overrides: list[str] = []
    while True:
        args = parser.parse_args(rest, namespace)
        # argparse takes all that follows the first override for further ones
        options = [index for index, text in enumerate(args.opts) if text.startswith("-")]
        if not options:
            args.opts = overrides + args.opts
            return args
        overrides += args.opts[: options[0]]
        rest = rest[: -len(args.opts)] + args.opts[options[0] :]


def checked_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of ``train_net.py``; wrong usage ends the program with 2."""
    parser = argument_parser()
    args = parse_arguments(parser, arguments)
    if not args.config_file:
        parser.error("--config-file is missing.")
    if args.num_gpus < 1 or args.num_machines < 1:
        parser.error("--num-gpus and --num-machines have to be at least 1.")
    if not 0 <= args.machine_rank < args.num_machines:
        parser.error("--machine-rank has to be from 0 to below --num-machines.")
    if args.num_machines > 1 and args.dist_url in (None, "auto"):
        parser.error(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, HOST being "
            "machine 0."
        )
    if args.val_data and not (args.train_data or args.eval_only):
        parser.error("--val-data needs --train-data to train on.")
    return args


def config_of(args: argparse.Namespace) -> DictConfig:
    """The config with its overrides; the command line's own data are not in it yet."""
    cfg = get_config(args.config_file, args.opts)
    if "train" in cfg:
        # a config of one's own need not name what it leaves alone
        cfg.train = OmegaConf.merge(get_config("common/train.py").train, cfg.train)
        for key in ("output_dir", "init_checkpoint"):
            # shells leave the ~ of key=~/folder as it is
            if isinstance(cfg.train[key], str):
                cfg.train[key] = os.path.expanduser(cfg.train[key])
    return cfg


def add_own_data(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Register the data of the command line, and make the config train and evaluate on them.

    The data sets that the config names will be read by this project's code. Without data to
    evaluate on there is no evaluator either.
    """
    if args.train_data or args.val_data:
        chosen = any(option.startswith("model.num_classes=") for option in args.opts)
        use_own_data(cfg, args.train_data, args.val_data, set_classes=not chosen)
        named = any(option.startswith("dataloader.test.dataset.names=") for option in args.opts)
        if args.train_data and not (args.val_data or named):
            # the config's own are of other classes
            cfg.dataloader.test = None
    if "dataloader" in cfg and cfg.dataloader.get("test") is None:
        # it refers to the test data
        cfg.dataloader.evaluator = None
    use_checked_data(cfg)
