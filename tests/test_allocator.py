"""Freed memory stays in the process, where the C library is glibc."""

import platform

import programs
import pytest

PROGRAM = """
import sys
from counting import what_is_kept
from dab_detr import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
print(int(what_is_kept().outcome()["megabytes"]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("what, kept", [("keep", True), ("return", False)])
def test_freed_memory_is_kept_on_demand(tmp_path, what, kept):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = programs.run(program, what)
    assert done.returncode == 0, done.stderr
    # of a few tensors, not of thirty
    assert (90 < int(done.stdout) < 900) if kept else int(done.stdout) < 50
