"""Comparisons of what trainings leave behind, and how torchrun starts one."""

import json
import re
import sys

import torch

TORCHRUN = [
    sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2",
    "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
]  # fmt: skip
_TIMES = re.compile(r"time|seconds")


def assert_equal(first, second, path=""):
    """Containers of tensors and numbers, bit for bit; of times only that they are there."""
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            if not _TIMES.search(str(key)):
                assert_equal(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second)):
            assert_equal(*pair, f"{path}/{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    else:
        assert first == second or first != first, path


def rows(folder):
    """All of metrics.json; of times only that they are there."""
    lines = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v if "time" not in k else None for k, v in x.items()} for x in lines]
