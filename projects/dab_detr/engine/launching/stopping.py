"""Several processes that end together, whichever of them a signal reaches, and whenever."""

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

# how often a process looks what the others have told
_POLL_S = 0.1
# so long the first process waits for the others to have read that it ends
_GRACE_S = 5.0
_HEARING, _CODE = "hearing", "code"


class SharedStop:
    """What the processes of a run tell each other about signals.

    The first process decides: it alone acts on a signal, as if it were the only one, and saves. The
    others hand it the signals that reach them, work on or wait for it, and end when it has told
    them that it does, with its exit code. So none leaves another that has something to do.

    They talk through the store of their group. In a collective they could not: the others may be in
    another one, where a main thread can neither run a signal's handler nor be called out of. This
    is the work of a thread, therefore.

    To be made in the main thread, before the signals get their handlers: none is missed.

    Args:
        signals: that stop a run.
        deliver: is called on the first process, in the thread, with a signal that another received.
        exit_now: ends a process other than the first with an exit code, wherever it is.
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
        # there is no public way to the group's store
        store = distributed_c10d._get_default_store()
        self._store = torch.distributed.PrefixStore("dab_detr/stop", store)
        # the signals that were delivered, and until when the first process waits for the others
        self._delivered: set[int] = set()
        self._end = 0.0
        # what the first process has told, and whether this one's main thread returns by itself
        self._told: int | None = None
        self._returns = False
        self._is_over = threading.Event()
        # a signal wakes the thread, even while the main thread cannot run the handler
        self._wakes, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        # what a data worker receives is not for this process
        os.register_at_fork(after_in_child=self._forget)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin to listen to the others, when the signals have their handlers."""
        self._thread.start()

    def _forget(self) -> None:
        if not self._is_over.is_set():
            signal.set_wakeup_fd(-1)

    def hear(self) -> None:
        """On the first process: have every signal delivered that any process has received."""
        self._stop_watching()
        with contextlib.suppress(RuntimeError):
            self._store.set(_HEARING, "")
            self._wait_for_others("heard")
            self._pass_on()

    def leave(self, code: int) -> int:
        """The last thing that a process does here; returns the exit code that it has to end with.

        The first process returns when the others have read its code, or after a while; another when
        it has read it, or at once if it has failed itself.

        Args:
            code: above 128 if a signal has stopped this process.
        """
        if self.is_first:
            self._stop_watching()
            # the store of a process that has died is gone
            with contextlib.suppress(RuntimeError):
                self._store.set(_CODE, str(code))
                self._wait_for_others("left")
            return code
        if code == 0 or code > 128:
            self._returns = True
            # hands on what comes meanwhile
            self._thread.join()
        self._stop_watching()
        return code if self._told is None else self._told

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
            while not self._is_over.is_set() and self._told is None:
                is_woken = select.select([self._wakes], [], [], _POLL_S)[0]
                received = self._wakes.recv(4096) if is_woken else b""
                if self.is_first:
                    self._pass_on()
                else:
                    self._talk(self._signals.intersection(received))
            if not self.is_first:
                for what in ("heard", "left"):
                    self._store.set(f"{what}/{comm.get_rank()}", "")
        if self._told and not self._returns:
            for child in multiprocessing.active_children():
                child.kill()
            self._exit_now(self._told)

    def _pass_on(self) -> None:
        """The first process: what the others have received."""
        for signum in self._signals - self._delivered:
            if self._store.check([f"signal/{signum}"]):
                self._delivered.add(signum)
                self._deliver(signum)

    def _talk(self, received: Collection[int]) -> None:
        """Any other process: tell what it has received, and read what the first one has told."""
        for signum in received:
            self._store.set(f"signal/{signum}", "")
        if self._store.check([_HEARING]):
            self._store.set(f"heard/{comm.get_rank()}", "")
        if self._store.check([_CODE]):
            self._told = int(self._store.get(_CODE))
