"""Contestants in processes of their own that take turns on one machine."""

import importlib
import multiprocessing
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dab_detr.allocator import keep_freed_memory
from dab_detr.errors import InputError

# a single run of some milliseconds an operation says little on a shared machine
_PROFILED_RUNS = 3


class Work(NamedTuple):
    """What a contestant does.

    Attributes:
        run: does the work once, from start to end; what it returns is not looked at.
        outcome: does it once and gives the numbers that all contestants have to agree on.
    """

    run: Callable[[], Any]
    outcome: Callable[[], dict[str, torch.Tensor]]


@dataclass
class Contestant:
    """One row of a table.

    Attributes:
        name: of the row.
        prepare: called with ``arguments`` in the contestant's process, gives its work.
        keep_memory: whether its process keeps freed memory, see
            :func:`dab_detr.allocator.keep_freed_memory`.
        imports: modules that its process loads before its memory is counted.
        seconds: of each timed run.
        peak_memory: bytes at the fullest moment of a run, weights included; None where the system
            does not tell.
        outcome: see :class:`Work`.
        profile: seconds of a run in each of PyTorch's operations, the longest first; of a GPU's
            time on a GPU.
    """

    name: str
    prepare: Callable[..., Work]
    arguments: dict[str, Any]
    keep_memory: bool = False
    imports: Sequence[str] = ()
    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    outcome: dict[str, torch.Tensor] = field(default_factory=dict)
    profile: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Of the timed runs, in seconds."""
        return statistics.median(self.seconds)


class ContestantFailed(RuntimeError):
    """A contestant's process ended with an error, which the message holds."""


def take_turns(
    contestants: Iterable[Contestant],
    device: str,
    *,
    repeats: int,
    warmup: int,
    check: Callable[[], None] = lambda: None,
    profile: bool = False,
) -> None:
    """Let each do its work ``warmup`` and ``repeats`` times, A B C A B C, and note what it took.

    All wait while one works, each in a process of its own, so that no one's memory or settings
    reach another.

    Args:
        check: called when all outcomes are there and nothing is timed yet; may raise.
        profile: also note the time in each operation, after all else.

    Raises:
        ContestantFailed: with the name and the error.
    """
    contestants = list(contestants)
    workers = []
    try:
        for contestant in contestants:
            workers.append(_Worker(contestant, device))
            # one after the other: preparing takes all cores
            contestant.outcome = workers[-1].ask("outcome")
        check()
        for turn in range(warmup + repeats):
            for contestant, worker in zip(contestants, workers):
                seconds = worker.ask("run")
                if turn >= warmup:
                    contestant.seconds.append(seconds)
        for contestant, worker in zip(contestants, workers):
            contestant.peak_memory = worker.ask("memory")
        if profile:
            _take_profiles(contestants, workers)
    finally:
        for worker in workers:
            worker.stop()


def _take_profiles(contestants: Iterable[Contestant], workers: Sequence["_Worker"]) -> None:
    """The mean of some runs, in turns."""
    total = [Counter() for _ in workers]
    for _ in range(_PROFILED_RUNS):
        for seconds, worker in zip(total, workers):
            seconds.update(worker.ask("profile"))
    for contestant, seconds in zip(contestants, total):
        contestant.profile = {name: x / _PROFILED_RUNS for name, x in seconds.most_common()}


class _Worker:
    def __init__(self, contestant: Contestant, device: str):
        self.name = contestant.name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, contestant, device), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, question: str) -> Any:
        try:
            self._connection.send(question)
            kind, answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise ContestantFailed(f"{self.name}: its process was killed.") from error
        if kind == "error":
            raise ContestantFailed(f"{self.name}: {answer}")
        return answer

    def stop(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


def _serve(connection: Connection, contestant: Contestant, device: str) -> None:
    try:
        if contestant.keep_memory:
            keep_freed_memory()
        if device.startswith("cuda"):
            torch.cuda.set_device(torch.device(device).index or 0)
            # float32 is float32, in convolutions as in matrix products
            torch.backends.cudnn.allow_tf32 = False
        for name in contestant.imports:
            importlib.import_module(name)
        memory = _Memory(device)
        work = contestant.prepare(**contestant.arguments)
        answers = {
            "outcome": lambda: {name: x.cpu() for name, x in work.outcome().items()},
            "run": lambda: _timed(work.run, device),
            "memory": lambda: memory.peak(work.run),
            "profile": lambda: _profile(work.run, device),
        }
        while True:
            connection.send(("answer", answers[connection.recv()]()))
    except EOFError:
        return
    except InputError as error:
        connection.send(("error", str(error)))
    except BaseException:
        connection.send(("error", traceback.format_exc()))


def _timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of one run, by the GPU's own clock where there is one."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _profile(run: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds of one run by operation, on a GPU by kernel."""
    on_gpu = device.startswith("cuda")
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profiler:
        run()
    seconds = {}
    for event in profiler.key_averages():
        # an annotation's time on a GPU is that of its kernels once more
        if not (on_gpu and event.is_user_annotation):
            time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            seconds[event.key] = time_us / 1e6
    return seconds


class _Memory:
    """Asks the GPU's allocator, or Linux, how much memory a contestant takes."""

    def __init__(self, device: str):
        self._on_gpu = device.startswith("cuda")
        self._before = 0 if self._on_gpu else _resident("VmRSS")

    def peak(self, run: Callable[[], Any]) -> int | None:
        """Bytes at the fullest moment of a run beyond what the process had before it loaded.

        Weights are included, and on a CPU also what the contestant has freed and keeps.
        """
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            run()
            return torch.cuda.max_memory_allocated()
        try:
            # resets VmHWM
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return None
        run()
        return _resident("VmHWM") - self._before


def _resident(name: str) -> int:
    """A line of Linux' account of this process, in bytes; 0 on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
