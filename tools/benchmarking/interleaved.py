"""Candidates in separate processes that run alternately on one machine."""

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

import numpy as np
import torch

from dab_detr.allocator import keep_freed_memory
from dab_detr.errors import InputError

# one run of a few milliseconds per operation says little on a shared machine
_PROFILED_RUNS = 3


class Work(NamedTuple):
    """The work of a candidate.

    Attributes:
        run: does the work once, from start to end; its result is ignored.
        outcome: does the work once and returns the numbers that all candidates have to agree on.
        computes: what runs it, for people.
    """

    run: Callable[[], Any]
    outcome: Callable[[], dict[str, torch.Tensor]]
    computes: str = f"PyTorch {torch.__version__}"


@dataclass
class Candidate:
    """A candidate and its measurements: one row of the table.

    Attributes:
        name: of the row.
        prepare: called with ``arguments`` in the candidate's process; returns its work.
        keep_memory: whether its process keeps freed memory, see
            :func:`dab_detr.allocator.keep_freed_memory`.
        imports: modules that its process loads before its memory is counted.
        seconds: of each timed run.
        peak_memory: peak bytes of a run, weights included; None where the system does not report
            it.
        outcome, computes: see :class:`Work`.
        profile: seconds per run of each PyTorch operation, longest first; on a GPU, of GPU time.
    """

    name: str
    prepare: Callable[..., Work]
    arguments: dict[str, Any]
    keep_memory: bool = False
    imports: Sequence[str] = ()
    seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    outcome: dict[str, torch.Tensor] = field(default_factory=dict)
    computes: str = ""
    profile: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the timed runs, in seconds."""
        return statistics.median(self.seconds)

    @property
    def percentile_95(self) -> float:
        """95th percentile of the timed runs, in seconds, interpolated."""
        return float(np.quantile(self.seconds, 0.95))


class CandidateFailed(RuntimeError):
    """A candidate's process ended with an error; the message contains it."""


def run_interleaved(
    candidates: Iterable[Candidate],
    device: str,
    *,
    repeats: int,
    warmup: int,
    check: Callable[[], None] = lambda: None,
    profile: bool = False,
) -> None:
    """Run the candidates alternately, A B C A B C, and record time and memory.

    Only one candidate runs at a time. Each has its own process, so that memory and settings of one
    do not affect another. All have as many threads as this process.

    Args:
        repeats: timed rounds, after ``warmup`` rounds that are not timed.
        check: called once all outcomes are known, before anything is timed; may raise.
        profile: also record the time of each operation, at the end.

    Raises:
        CandidateFailed: with the name and the error.
    """
    candidates = list(candidates)
    workers = []
    try:
        for candidate in candidates:
            workers.append(_Worker(candidate, device))
            # one after the other: preparation uses all cores
            candidate.outcome = workers[-1].ask("outcome")
            candidate.computes = workers[-1].ask("computes")
        check()
        for round in range(warmup + repeats):
            for candidate, worker in zip(candidates, workers):
                seconds = worker.ask("run")
                if round >= warmup:
                    candidate.seconds.append(seconds)
        for candidate, worker in zip(candidates, workers):
            candidate.peak_memory = worker.ask("memory")
        if profile:
            _profile_interleaved(candidates, workers)
    finally:
        for worker in workers:
            worker.stop()


def _profile_interleaved(candidates: Iterable[Candidate], workers: Sequence["_Worker"]) -> None:
    """The mean of several runs, run alternately."""
    total = [Counter() for _ in workers]
    for _ in range(_PROFILED_RUNS):
        for seconds, worker in zip(total, workers):
            seconds.update(worker.ask("profile"))
    for candidate, seconds in zip(candidates, total):
        candidate.profile = {name: x / _PROFILED_RUNS for name, x in seconds.most_common()}


class _Worker:
    def __init__(self, candidate: Candidate, device: str):
        self.name = candidate.name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, candidate, device, torch.get_num_threads()),
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def ask(self, question: str) -> Any:
        try:
            self._connection.send(question)
            kind, answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise CandidateFailed(f"{self.name}: its process was killed.") from error
        if kind == "error":
            raise CandidateFailed(f"{self.name}: {answer}")
        return answer

    def stop(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()


def _serve(connection: Connection, candidate: Candidate, device: str, threads: int) -> None:
    try:
        torch.set_num_threads(threads)
        if candidate.keep_memory:
            keep_freed_memory()
        if device.startswith("cuda"):
            torch.cuda.set_device(torch.device(device).index or 0)
            # float32 without TF32, in convolutions as in matrix products
            torch.backends.cudnn.allow_tf32 = False
        for name in candidate.imports:
            importlib.import_module(name)
        memory = _Memory(device)
        work = candidate.prepare(**candidate.arguments)
        answers = {
            "outcome": lambda: {name: x.cpu() for name, x in work.outcome().items()},
            "computes": lambda: work.computes,
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
    """Seconds of one run; on a GPU measured with its events."""
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
    """Seconds of one run by operation; on a GPU by kernel."""
    on_gpu = device.startswith("cuda")
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profiler:
        run()
    seconds = {}
    for event in profiler.key_averages():
        # on a GPU, an annotation's time repeats that of its kernels
        if not (on_gpu and event.is_user_annotation):
            time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            seconds[event.key] = time_us / 1e6
    return seconds


class _Memory:
    """Measures a candidate's memory: by the GPU's allocator, or by Linux."""

    def __init__(self, device: str):
        self._on_gpu = device.startswith("cuda")
        self._before = 0 if self._on_gpu else _resident("VmRSS")

    def peak(self, run: Callable[[], Any]) -> int | None:
        """Peak bytes of a run, without what the process had before the candidate was prepared.

        Weights are included, and on a CPU also freed memory that the process keeps.
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
    """A line of ``/proc/self/status`` in bytes; 0 on other systems than Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
