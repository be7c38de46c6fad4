"""The command line of ``train_net.py``; imports nothing slow."""

import argparse
import sys
from collections.abc import Sequence

_EPILOG = """\
Train:      %(prog)s --config-file configs/dab_detr_r50_50ep.py --num-gpus 8
Own data:   add --train-data IMAGES_DIR ANN.json --val-data IMAGES_DIR ANN.json;
            (without --val-data nothing is evaluated)
Continue:   add --resume
Evaluate:   add --eval-only --weights FILE
Override:   any key of the config as key=value, e.g. train.max_iter=1000 train.epochs=12
It can also be started with torchrun. Exit code: 0 if everything worked, 1 for wrong files, keys or
values, 2 for wrong usage, 128 + the signal's number after SIGTERM or Ctrl-C (it saves and stops).
"""


def argument_parser(program: str = "train_net.py") -> argparse.ArgumentParser:
    """The options of ``train_net.py``: those of Detectron2's programs, and this project's own.

    Detectron2's own parser has the same options, but needs an import of Detectron2 and PyTorch.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="Train or evaluate DAB-DETR from a LazyConfig file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="the config")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in train.output_dir",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print everything that goes to log.txt"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate without training")
    parser.add_argument(
        "--weights",
        metavar="W",
        help="what to evaluate, instead of train.init_checkpoint: a checkpoint, a name of dab-detr "
        "zoo, or an exported file (.onnx, .xml)",
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine, from 0")
    # Detectron2's default is the same port for all trainings of a user
    parser.add_argument(
        "--dist-url",
        metavar="tcp://HOST:PORT",
        help="rendezvous of several machines; on one machine a free port is used",
    )
    data_arguments(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="overrides of the config, as key=value"
    )
    return parser


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--train-data`` and ``--val-data``; ``dab_detr.engine.setup`` handles them."""
    for option, use in (("--train-data", "training"), ("--val-data", "evaluation")):
        parser.add_argument(
            option,
            nargs=2,
            metavar=("IMAGES_DIR", "ANN.json"),
            help=f"images for {use}, with annotations in COCO's format",
        )


def parse_arguments(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    namespace: argparse.Namespace | None = None,
) -> argparse.Namespace:
    """``parser.parse_args``, with options before, between and after the overrides.

    Args:
        parser: has the overrides as ``opts``, like that of :func:`argument_parser`.
        arguments, namespace: as for ``parse_args``.
    """
    rest = [x for x in (sys.argv[1:] if arguments is None else arguments) if x != "--"]
    overrides: list[str] = []
    while True:
        args = parser.parse_args(rest, namespace)
        # argparse treats everything after the first override as overrides
        options = [index for index, text in enumerate(args.opts) if text.startswith("-")]
        if not options:
            args.opts = overrides + args.opts
            return args
        overrides += args.opts[: options[0]]
        rest = rest[: -len(args.opts)] + args.opts[options[0] :]


def checked_arguments(
    arguments: Sequence[str] | None, program: str = "train_net.py"
) -> argparse.Namespace:
    """The arguments of ``train_net.py``; wrong usage ends the program with exit code 2.

    Args:
        program: name of the program, for messages; stored as ``program`` in the result.
    """
    parser = argument_parser(program)
    args = parse_arguments(parser, arguments, argparse.Namespace(program=program))
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
    if args.weights is not None:
        if not args.eval_only:
            parser.error("--weights is for --eval-only; a training takes train.init_checkpoint=W.")
        if any(override.startswith("train.init_checkpoint=") for override in args.opts):
            parser.error("--weights and train.init_checkpoint are the same: give one of them.")
    if args.val_data and not (args.train_data or args.eval_only):
        parser.error("--val-data needs --train-data to train on.")
    return args
