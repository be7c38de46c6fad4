"""Makes several processes stop together, whichever of them receives a signal."""

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection

import torch
from detectron2.utils import comm
from torch.distributed import distributed_c10d

# how often a process reads the messages of the others
_POLL_S = 0.1
# how long process 0 waits until the others have read its exit code
_GRACE_S = 5.0
_COLLECTING, _CODE = "collecting", "code"


class SharedStop:
    """Communication between the processes of a run about signals.

    Process 0 decides: only it reacts to a signal, as if it were the only process, and saves. The
    others send it the signals that they receive, continue or wait for it, and exit with its exit
    code after it has sent that. So no process ends while another still needs it.

    They communicate through the store of their process group, in a thread. Collectives cannot be
    used: another process may be inside another collective, in which its main thread can neither
    run a signal handler nor be interrupted.

    Has to be made in the main thread before the signal handlers are installed, so that no signal
    is lost.

    Args:
        signals: signals that stop a run.
        deliver: called on process 0, in the thread, with a signal that another process received.
        exit_now: ends another process than 0 with an exit code, whatever it is doing.
    """

    def __init__(
        self,
        signals: Collection[int],
        deliver: Callable[[int], None],
        exit_now: Callable[[int], None],
    ):
        self.is_first = comm.is_main_process()
        self._signals = set(signals)
        self._deliver = deliver
        self._exit_now = exit_now
        # there is no public access to the group's store
        store = distributed_c10d._get_default_store()
        self._store = torch.distributed.PrefixStore("dab_detr/stop", store)
        # signals that were delivered, and until when process 0 waits for the others
        self._delivered: set[int] = set()
        self._end = 0.0
        # the exit code of process 0, and whether this process's main thread returns by itself
        self._code_of_first: int | None = None
        self._returns = False
        self._is_over = threading.Event()
        # a signal wakes the thread, even while the main thread cannot run the handler
        self._wakes, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        # signals that a data worker receives are not for this process
        os.register_at_fork(after_in_child=self._forget)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Start the thread, after the signal handlers have been installed."""
        self._thread.start()

    def _forget(self) -> None:
        if not self._is_over.is_set():
            signal.set_wakeup_fd(-1)

    def collect_signals(self) -> None:
        """On process 0: deliver all signals that any process has received."""
        self._stop_watching()
        with contextlib.suppress(RuntimeError):
            self._store.set(_COLLECTING, "")
            self._wait_for_others("reported")
            self._pass_on()

    def leave(self, code: int) -> int:
        """End the communication; returns the exit code for this process.

        Process 0 returns when the others have read its code, or after a timeout. Another process
        returns when it has read the code, or immediately if it has failed itself.

        Args:
            code: above 128 if a signal has stopped this process.
        """
        if self.is_first:
            self._stop_watching()
            # the store is gone if its process has died
            with contextlib.suppress(RuntimeError):
                self._store.set(_CODE, str(code))
                self._wait_for_others("left")
            return code
        if code == 0 or code > 128:
            self._returns = True
            # the thread forwards signals until then
            self._thread.join()
        self._stop_watching()
        return code if self._code_of_first is None else self._code_of_first

    def _stop_watching(self) -> None:
        if not self._is_over.is_set():
            self._is_over.set()
            self._waker.send(b"\0")
            self._thread.join()
            signal.set_wakeup_fd(self._previous)

    def _wait_for_others(self, what: str) -> None:
        keys = [f"{what}/{rank}" for rank in range(1, comm.get_world_size())]
        self._end = self._end or time.monotonic() + _GRACE_S
        while not self._store.check(keys) and time.monotonic() < self._end:
            time.sleep(_POLL_S / 10)

    def _watch(self) -> None:
        with contextlib.suppress(RuntimeError):
            while not self._is_over.is_set() and self._code_of_first is None:
                is_woken = select.select([self._wakes], [], [], _POLL_S)[0]
                received = self._wakes.recv(4096) if is_woken else b""
                if self.is_first:
                    self._pass_on()
                else:
                    self._exchange(self._signals.intersection(received))
            if not self.is_first:
                for what in ("reported", "left"):
                    self._store.set(f"{what}/{comm.get_rank()}", "")
        if self._code_of_first and not self._returns:
            for child in multiprocessing.active_children():
                child.kill()
            self._exit_now(self._code_of_first)

    def _pass_on(self) -> None:
        """On process 0: deliver the signals that others have received."""
        for signum in self._signals - self._delivered:
            if self._store.check([f"signal/{signum}"]):
                self._delivered.add(signum)
                self._deliver(signum)

    def _exchange(self, received: Collection[int]) -> None:
        """On other processes: send received signals, and read the messages of process 0."""
        for signum in received:
            self._store.set(f"signal/{signum}", "")
        if self._store.check([_COLLECTING]):
            self._store.set(f"reported/{comm.get_rank()}", "")
        if self._store.check([_CODE]):
            self._code_of_first = int(self._store.get(_CODE))
