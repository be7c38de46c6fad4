"""Signals that ask a training to end: it finishes its step, saves, and says how to go on."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator

# SLURM and submitit announce the end of a job's time by SIGUSR2
_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2") if hasattr(signal, name)
]


# Several may come: a cluster that takes the machine away sends SIGTERM too, but it is SIGUSR2 on
# which submitit queues the job again.
_FOREMOST = getattr(signal, "SIGUSR2", None)


def foremost(signals: Iterable[int]) -> int:
    """The signal that decides the exit code; 0 stands for none."""
    return max(signals, key=lambda signum: (signum == _FOREMOST, signum))


class TrainingStopped(BaseException):
    """The training was asked to end; like KeyboardInterrupt, no error that could be handled.

    Attributes:
        signum: the signal. The exit code of a program that ends because of it is 128 + signum.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interruption:
    """Catches the signals while it is entered; what was installed before comes back afterwards.

    Attributes:
        signum: the signal that came, or None.
    """

    def __init__(self):
        self.signum: int | None = None
        self._at_once = False
        self._pid = os.getpid()

    def __enter__(self) -> "Interruption":
        # Python hands signals to the main thread only, and only that may install handlers
        in_main = threading.current_thread() is threading.main_thread()
        signals = _SIGNALS if in_main else []
        self._previous = {x: signal.signal(x, self._note) for x in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises :class:`TrainingStopped` where it comes: nothing is half done."""
        if self.signum is not None:
            raise TrainingStopped(self.signum)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:
            # a data worker, forked off this process: Ctrl-C is not for it, but it can be ended
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = foremost((self.signum or 0, signum))
        if self._at_once:
            raise TrainingStopped(self.signum)
