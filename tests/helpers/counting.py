"""Candidates for the tests of the benchmark, in a module that loads quickly."""

from pathlib import Path

import torch

from benchmarking.interleaved import Work


def count_up(*, log, name, fail=None):
    """Writes its name into a file at each run; fails at the step ``fail``."""
    if fail == "prepare":
        raise ValueError("there is no such model")

    def run():
        with open(log, "a") as file:
            file.write(name)

    return Work(run, lambda: {"answer": torch.tensor(2.0 if fail == "outcome" else 1.0)})


def what_is_kept():
    """Measures how much larger its process is after thirty tensors that were freed."""

    def resident():
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
        return int(line.split()[1]) / 1024

    before = resident()
    for _ in range(30):
        torch.ones(25_000_000)  # 100 MB
    kept = torch.tensor(resident() - before)
    return Work(lambda: None, lambda: {"megabytes": kept})


def count_threads() -> Work:
    """The outcome is the number of PyTorch's threads."""
    return Work(lambda: None, lambda: {"threads": torch.tensor(torch.get_num_threads())})
