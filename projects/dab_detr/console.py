"""Console output of a running program. Everything else is in ``log.txt``."""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from detectron2.utils import comm
from tqdm import tqdm

# the ``extra`` of a log call whose message is only for log.txt
DETAIL = {"detail": True}


def is_live() -> bool:
    """Whether this process writes to a terminal, where a line can be overwritten."""
    return comm.is_main_process() and sys.stdout.isatty()


def bar(loader: Iterable | None = None, *, disable: bool = False, **arguments: Any) -> tqdm:
    """A progress bar on standard output; hidden if that is not a terminal.

    Args:
        loader: the iterable to count; None: the bar is updated by the caller.
    """
    hidden = disable or not is_live()
    return tqdm(loader, file=sys.stdout, disable=hidden, dynamic_ncols=True, **arguments)


class Console:
    """A stream for log handlers: the current standard output, above any progress bar."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout, end="")

    def flush(self) -> None:
        sys.stdout.flush()


class ConsoleFormatter(logging.Formatter):
    """Formats time and message; warnings and errors also with their level."""

    def __init__(self):
        super().__init__("[%(asctime)s] %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        time, _, rest = text.partition("] ")
        return f"{time}] {record.levelname}: {rest}"


def is_for_people(record: logging.LogRecord) -> bool:
    """Whether to print a record: warnings, and this project's messages except details."""
    own = record.name.partition(".")[0] == "dab_detr" and not getattr(record, "detail", False)
    return own or record.levelno >= logging.WARNING
