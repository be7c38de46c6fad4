"""The output folder of a run: used by one run at a time; earlier results are kept."""

import contextlib
import datetime
import errno
import itertools
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils import comm

from dab_detr.checkpoint.checkpointer import BEST_FILE
from dab_detr.errors import InputError
from dab_detr.evaluation.evaluate import RESULTS_FILE
from dab_detr.files import atomic_write

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
_LOCK_FILE = ".lock"
# files of a training; a user's own files are not among them
_RESULTS = (
    METRICS_FILE,
    RESULTS_FILE,
    "last_checkpoint",
    "model_final.pth",
    BEST_FILE,
    f"model_{'[0-9]' * 7}.pth",
    "nonfinite_step_*.pth",
    "events.out.tfevents.*",
    "training_curve.png",
    "predictions",
    "inference*",
)
# files that every run writes before it starts
_CONFIG, _LOG = "config.yaml", "log.txt"
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class OutputFolder:
    """``train.output_dir``, which is made if it does not exist.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._config: bytes | None = None
        self._log_size = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A context that locks the folder; all processes of the group enter it together.

        The lock is the operating system's: it ends with the process, even if that is killed.

        Raises:
            InputError: on every process, if another run uses the folder or it is not writable.
        """
        lock, problem = None, None
        if comm.is_main_process():
            try:
                lock = self._lock()
                self._note_what_is_there()
            except InputError as error:
                problem = str(error)
        _refuse_together(problem)
        try:
            yield
        finally:
            if lock is not None:
                os.ftruncate(lock, 0)
                os.close(lock)

    def require_disk_space(self, size: int) -> None:
        """Check that ``size`` bytes fit on the disk; called by all processes of the group.

        Raises:
            InputError: on every process, if not.
        """
        problem = None
        if comm.is_main_process():
            usage = shutil.disk_usage(self.path)
            # some network file systems report no size
            if usage.total and usage.free < size:
                problem = (
                    f"{self.path} has {usage.free / 1e6:.1f} MB of free disk space, but a "
                    f"checkpoint needs at least {size / 1e6:.1f} MB: free disk space or choose "
                    "another folder with train.output_dir=FOLDER."
                )
        _refuse_together(problem)

    def require_free(self) -> None:
        """Check that no run uses the folder, before anything is written.

        Raises:
            InputError: if one does.
        """
        if fcntl is None:
            return
        with contextlib.suppress(OSError):
            lock = os.open(self.path / _LOCK_FILE, os.O_RDWR)
            try:
                self._take(lock)
            finally:
                os.close(lock)

    def _lock(self) -> int:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f"{self.path} is not writable ({error.strerror}): choose another folder with "
                "train.output_dir=FOLDER."
            ) from error
        try:
            self._take(lock)
        except OSError as error:
            os.close(lock)
            raise InputError(f"{self.path / _LOCK_FILE} cannot be locked: {error}.") from error
        except InputError:
            os.close(lock)
            raise
        started = datetime.datetime.now().isoformat(" ", "seconds")
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": started}
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(holder).encode(), 0)
        return lock

    def _take(self, lock: int) -> None:
        # Not flock: data workers, forked from this process, would keep the lock. This lock ends as
        # soon as this process closes the file, even if it has the file open twice.
        reason = "locks of this operating system are not supported"
        if fcntl is not None:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise InputError(self._who(os.pread(lock, 1000, 0))) from error
                if error.errno not in _WITHOUT_LOCKS:
                    raise
                reason = error.strerror
        logger.warning(
            f"{self.path} cannot be locked ({reason}): make sure that no other run uses it."
        )

    def _who(self, content: bytes) -> str:
        who = "Another run"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            holder = json.loads(content)
            who = f"Process {holder['process']} of {holder['host']}, since {holder['since']},"
        return (
            f"{who} is training or evaluating in {self.path}: wait until it ends, or choose "
            "another folder with train.output_dir=FOLDER."
        )

    def _note_what_is_there(self) -> None:
        """Read the earlier config and the size of the log, as every run first changes both."""
        with contextlib.suppress(FileNotFoundError):
            self._config = (self.path / _CONFIG).read_bytes()
        with contextlib.suppress(FileNotFoundError):
            self._log_size = (self.path / _LOG).stat().st_size

    def set_aside(self) -> None:
        """Move the files of an earlier training to a folder, so that two trainings do not mix.

        The folder is ``previous``, then ``previous-2`` and so on: nothing is overwritten.
        """
        old = sorted({file for pattern in _RESULTS for file in self.path.glob(pattern)})
        if not old:
            return
        previous = self._new_folder()
        for file in old:
            file.rename(previous / file.name)
        if self._config is not None:
            atomic_write(previous / _CONFIG, lambda file: file.write(self._config))
        if self._log_size:
            self._divide_log(previous / _LOG)
        logger.info(f"The checkpoints and metrics of an earlier training are now in {previous}.")

    def _new_folder(self) -> Path:
        for number in itertools.count(1):
            folder = self.path / ("previous" if number == 1 else f"previous-{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder

    def _divide_log(self, earlier: Path) -> None:
        """Move the earlier part of the log; logging continues in the rest."""
        with open(self.path / _LOG, "r+b") as log:
            before, own = log.read(self._log_size), log.read()
            atomic_write(earlier, lambda file: file.write(before))
            log.seek(0)
            log.write(own)
            log.truncate()


def _refuse_together(problem: str | None) -> None:
    """Raise InputError on every process if process 0 has a problem."""
    problem = comm.all_gather(problem)[0]
    if problem:
        raise InputError(problem)
