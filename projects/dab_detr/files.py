"""Files that are either whole or not there, whenever the process is killed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Make or replace a file as a whole: written aside, put on the disk, then renamed.

    Args:
        path: in a folder that exists.
        write: is given the open binary file.
    """
    path = Path(path)
    # one name, so that what a killed process leaves is overwritten by the next
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
