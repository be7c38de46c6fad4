"""Sets up Detectron2's loggers: everything in ``log.txt``, the essentials on the console."""

import argparse
import contextlib
import io
import logging
import sys

from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from dab_detr.console import Console, ConsoleFormatter, is_for_people

_LOGGERS = ("detectron2", "fvcore", "dab_detr")


def set_up(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Detectron2's ``default_setup``: logs, seeds, and the config in ``train.output_dir``.

    The set-up of an earlier run in this process is replaced.

    Args:
        cfg, args: as for ``default_setup``; with ``args.verbose`` everything that is logged is
            printed to the console.
    """
    _forget()
    start = io.StringIO()
    with contextlib.redirect_stdout(start):
        default_setup(cfg, args)
        # Detectron2 sets up only its own loggers and fvcore's
        setup_logger(cfg.train.output_dir, comm.get_rank(), name="dab_detr").setLevel(logging.INFO)
    if args.verbose:
        sys.stdout.write(start.getvalue())
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) is start:
                handler.setStream(Console())
                if not args.verbose:
                    handler.addFilter(is_for_people)
                    handler.setFormatter(ConsoleFormatter())


def _forget() -> None:
    setup_logger.cache_clear()
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
