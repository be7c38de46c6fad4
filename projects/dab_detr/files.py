"""Atomic writes: a file is either complete or absent, even if the process is killed."""

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dab_detr.errors import InputError

# suffix of files that are being written; a killed process leaves such a file
UNFINISHED = ".unfinished"


def atomic_write(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Write or replace a file atomically: write a temporary file, sync it to disk, rename it.

    Args:
        path: in an existing folder.
        write: called with the open binary file.

    Raises:
        InputError: if it cannot be written, e.g. because the disk is full; an existing file is
            kept.
    """
    path = Path(path)
    # several processes, also on several machines, may write the same file at the same time
    own = f"{socket.gethostname()}-{os.getpid()}"
    unfinished = path.with_name(f".{path.name}.{own}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        # torch.save's own error does not give the reason
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(reason, OSError):
            raise cannot_be_written(path, reason) from error
        raise


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """:func:`atomic_write` for text, in UTF-8."""
    atomic_write(path, lambda file: file.write(text.encode()))


def cannot_be_written(path: str | os.PathLike, reason: OSError) -> InputError:
    """The error for a file, or the folder of a file, that cannot be written."""
    return InputError(
        f"{path} cannot be written ({reason.strerror or reason}): free disk space or choose "
        "another folder. Files that were written before are complete."
    )


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The JSON objects of a file with one object per line, such as ``metrics.json``.

    Lines that are not JSON objects are skipped: a process that is killed while it appends leaves an
    incomplete line.
    """
    records = []
    for line in Path(path).read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
