"""Signals that stop a training: it finishes its step, saves, and says how to continue."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator

from detectron2.utils import comm

from dab_detr.engine.launching.stopping import SharedStop

# SLURM and submitit send SIGUSR2 before a job's time limit
_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2") if hasattr(signal, name)
]


# Several signals may be received: a cluster that stops a job also sends SIGTERM, but submitit
# requeues the job after SIGUSR2.
_REQUEUE_SIGNAL = getattr(signal, "SIGUSR2", None)


def deciding_signal(signals: Iterable[int]) -> int:
    """The signal with the highest priority, which sets the exit code; 0 stands for none."""
    return max(signals, key=lambda signum: (signum == _REQUEUE_SIGNAL, signum))


class TrainingStopped(BaseException):
    """A signal has stopped the training; like KeyboardInterrupt, it is not an ``Exception``.

    Attributes:
        stop_signal: its number. The exit code of the program is 128 + stop_signal.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.stop_signal = signum


class Interruption:
    """A context that handles the signals; the previous handlers are restored at its end.

    Entered on all processes of a group, it handles signals that reach any of them; see
    :class:`~dab_detr.engine.launching.stopping.SharedStop`.

    Args:
        exit_now: ends a process that waits for another process that has been stopped.

    Attributes:
        stop_signal: number of the signal that was received, or None.
    """

    def __init__(self, exit_now: Callable[[int], None] = os._exit):
        self.stop_signal: int | None = None
        self._interruptible = False
        self._pid = os.getpid()
        self._exit_now = exit_now
        self._shared: SharedStop | None = None
        # whether this process has received a signal, and the signals that only others received
        self._is_hit = False
        self._relayed: set[int] = set()
        self._code = 0

    def __enter__(self) -> "Interruption":
        # Python runs signal handlers only in the main thread, and only that may install them
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
            # the traceback shows the error
            self.leave(128 + signal.SIGINT if issubclass(kind, KeyboardInterrupt) else 1)
        for signum, handler in self._previous.items():
            # the launcher of several processes ends the others with SIGTERM when one has ended
            is_on_its_way = self._shared is not None and self._code
            signal.signal(signum, signal.SIG_IGN if is_on_its_way else handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A context in which a signal raises :class:`TrainingStopped` immediately.

        Of several processes, only process 0 is interrupted.
        """
        if self._decides:
            self._stop_if_asked()
            self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False
        if self._decides:
            # exceptions in some callbacks are lost
            self._stop_if_asked()

    def leave(self, code: int) -> int:
        """The exit code of this process: ``code``, or that of process 0 if it decides.

        Args:
            code: 128 + the signal's number after :class:`TrainingStopped`.
        """
        if self._shared is not None and self._shared.is_first and code > 128:
            self._shared.collect_signals()
        if self.stop_signal is not None and code > 128:
            # further signals may have been received
            code = 128 + deciding_signal((self.stop_signal, code - 128))
        self._code = code if self._shared is None else self._shared.leave(code)
        return self._code

    @property
    def _decides(self) -> bool:
        return self._shared is None or self._shared.is_first

    def _stop_if_asked(self) -> None:
        if self.stop_signal is not None:
            raise TrainingStopped(self.stop_signal)

    def _relay(self, signum: int) -> None:
        """Deliver a signal in the main thread, whose system calls it interrupts."""
        self._relayed.add(signum)
        signal.pthread_kill(threading.main_thread().ident, signum)

    def _note(self, signum: int, frame: object) -> None:
        if os.getpid() != self._pid:
            # a data worker, forked from this process: it ignores Ctrl-C, but SIGTERM ends it
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
        self.stop_signal = deciding_signal((self.stop_signal or 0, signum))
        if self._interruptible:
            raise TrainingStopped(self.stop_signal)
