"""Freed memory stays in the process, where the C library is glibc."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path
import torch
from dab_detr import keep_freed_memory

def resident():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
    return int(line.split()[1]) // 1024

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
for _ in range(30):
    torch.ones(25_000_000)  # 100 MB
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
@pytest.mark.parametrize("what, kept", [("keep", True), ("return", False)])
def test_freed_memory_is_kept_on_demand(what, kept):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=True
    )
    # of a few tensors, not of thirty
    assert (90 < int(done.stdout) < 900) if kept else int(done.stdout) < 50
