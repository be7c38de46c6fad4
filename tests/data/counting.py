"""A contestant for the tests of the benchmark, in a module that its process loads quickly."""

import torch

from dab_detr.benchmark.turns import Work


def count_up(*, log, name, fail=None):
    """Writes its name into a file at each run; fails as told."""
    if fail == "prepare":
        raise ValueError("there is no such model")

    def run():
        with open(log, "a") as file:
            file.write(name)

    return Work(run, lambda: {"answer": torch.tensor(2.0 if fail == "outcome" else 1.0)})
