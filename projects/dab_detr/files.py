"""Files that are either whole or not there, whenever the process is killed."""

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from dab_detr.errors import InputError

# ends the names of files that are being written; a killed process leaves one
UNFINISHED = ".unfinished"


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Make or replace a file as a whole: written aside, put on the disk, then renamed.

    Args:
        path: in a folder that exists.
        write: is given the open binary file.

    Raises:
        InputError: if it cannot be written, e.g. because the disk is full; what was there remains.
    """
    path = Path(path)
    # several processes, of several machines too, may write the same file at once
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
        # torch.save says that something went wrong, not what
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(reason, OSError):
            raise cannot_be_written(path, reason) from error
        raise


def cannot_be_written(path: str | os.PathLike, reason: OSError) -> InputError:
    """What to tell the user when ``path``, a file or the folder of one, cannot be written."""
    return InputError(
        f"{path} cannot be written ({reason.strerror or reason}): make room or choose another "
        "folder. What was written before is whole."
    )


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The JSON objects of a file that has one a line and is appended to, such as ``metrics.json``.

    A line that is none is left out: a process that is killed while it writes leaves half of one.
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
