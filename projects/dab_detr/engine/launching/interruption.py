"""Signals that ask a training to end: it finishes its step, saves, and says how to go on."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

from detectron2.utils import comm

from dab_detr.engine.launching.stopping import SharedStop

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

    Entered on all processes of a group it catches what reaches any of them; see
    :class:`~dab_detr.engine.launching.stopping.SharedStop`.

    Args:
        exit_now: ends a process that waits for another one which has been stopped.

    Attributes:
        signum: the signal that came, or None.
    """

    def __init__(self, exit_now: Callable[[int], None] = os._exit):
        self.signum: int | None = None
        self._at_once = False
        self._pid = os.getpid()
        self._exit_now = exit_now
        self._shared: SharedStop | None = None
        # whether a signal has come to this process itself, and those that came to others only
        self._is_hit = False
        self._relayed: set[int] = set()
        self._code = 0

    def __enter__(self) -> "Interruption":
        # Python hands signals to the main thread only, and only that may install handlers
        in_main = threading.current_thread() is threading.main_thread()
        signals = _SIGNALS if in_main else []
        if signals and comm.get_world_size() > 1:
            self._shared = SharedStop(signals, self._relay, self._exit_now)
        self._previous = {x: signal.signal(x, self._note) for x in signals}
        if self._shared is not None:
            self._shared.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            # of an error the traceback tells
            self.leave(128 + signal.SIGINT if issubclass(kind, KeyboardInterrupt) else 1)
        for signum, handler in self._previous.items():
            # whoever has started several processes ends the others when one is gone, with SIGTERM
            is_on_its_way = self._shared is not None and self._code
            signal.signal(signum, signal.SIG_IGN if is_on_its_way else handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises :class:`TrainingStopped` where it comes: nothing is half done.

        Of several processes only the first is interrupted.
        """
        if self._decides:
            self._stop_if_asked()
            self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
        if self._decides:
            # what is raised in some callbacks does not arrive
            self._stop_if_asked()

    def leave(self, code: int) -> int:
        """What this process ends with: ``code`` or, where another one decides, that one's.

        Args:
            code: 128 + the signal's number after :class:`TrainingStopped`.
        """
        if self._shared is not None and self._shared.is_first and code > 128:
            self._shared.hear()
        if self.signum is not None and code > 128:
            # more may have come meanwhile
            code = 128 + foremost((self.signum, code - 128))
        self._code = code if self._shared is None else self._shared.leave(code)
        return self._code

    @property
    def _decides(self) -> bool:
        return self._shared is None or self._shared.is_first

    def _stop_if_asked(self) -> None:
        if self.signum is not None:
            raise TrainingStopped(self.signum)

    def _relay(self, signum: int) -> None:
        """Called in another thread: the main thread's system calls are to be interrupted, too."""
        self._relayed.add(signum)
        signal.pthread_kill(threading.main_thread().ident, signum)

    def _note(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:
            # a data worker, forked off this process: Ctrl-C is not for it, but it can be ended
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        if signum in self._relayed:
            self._relayed.remove(signum)
        elif self._is_hit and signum == signal.SIGINT and self._decides:
            raise KeyboardInterrupt
        else:
            self._is_hit = True
        self.signum = foremost((self.signum or 0, signum))
        if self._at_once:
            raise TrainingStopped(self.signum)
