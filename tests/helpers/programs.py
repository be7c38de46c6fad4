"""Starts programs quickly: in processes forked off one that has imported what they import.

A start of ``train_net.py`` is seven seconds of imports and little else. Here a server, Python's own
``forkserver``, imports once for all tests of a pytest process. It has no threads, and nothing of
this project has run in it. What is forked off it has its own arguments, environment, folder, open
files and exit code, takes signals, and is in no way the test's child that shares its memory.

What it cannot show is how Python itself starts: some tests start programs with ``subprocess``.
"""

import atexit
import contextlib
import io
import multiprocessing
import multiprocessing.forkserver
import os
import random
import runpy
import subprocess
import sys
import tempfile
import warnings
from multiprocessing import reduction
from multiprocessing.context import ForkServerContext, ForkServerProcess

import numpy


def _start_server():
    """The server has the tests' import path, and one thread: a fork takes no others along."""
    settings = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


class _File:
    """An open file for the other process."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _detach, (reduction.DupFd(self.number),)


def _detach(duplicate):
    return duplicate.detach()


class _Process(ForkServerProcess):
    """One that has its parent's environment and streams, as if the parent had forked it itself."""

    def __init__(self, *args, stdout=1, stderr=2, env=None, **kwargs):
        super().__init__(*args, **kwargs)
        self._inherited = _File(stdout), _File(stderr), dict(os.environ if env is None else env)

    def run(self):
        *files, environment = self._inherited
        for number, source in enumerate(files, start=1):
            os.dup2(source, number)
            os.close(source)
        # as Python opens them
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = (
            io.TextIOWrapper(open(1, "wb", closefd=False)),
            io.TextIOWrapper(open(2, "wb", closefd=False), line_buffering=True),
        )
        os.environ.clear()
        os.environ.update(environment)
        # python -W ignore
        warnings.simplefilter("ignore")
        random.seed()
        numpy.random.seed()
        super().run()


class _Context(ForkServerContext):
    Process = _Process


_CONTEXT = _Context()
_CONTEXT.set_forkserver_preload(["preloaded"])


def context():
    """What ``multiprocessing.get_context("spawn")`` gives, but quick."""
    _start_server()
    return _CONTEXT


@contextlib.contextmanager
def quick_spawn():
    """Inside, processes that this one spawns are forked off the server."""
    original = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: (
        context() if method == "spawn" else original(method)
    )
    try:
        yield
    finally:
        multiprocessing.get_context = original


class Program:
    """A program that runs, with the part of ``subprocess.Popen`` that the tests need.

    Args:
        path: of the program, a Python file. Nothing can be read from its stdin.
        arguments: its command line.
        stdout: an open file, or ``subprocess.PIPE``, which is then read as text.
        stderr: an open file, or ``subprocess.STDOUT``.
        env, cwd: as of ``Popen``.
        own_group: whether it leads a process group of its own, as what a shell starts does.
    """

    def __init__(self, path, arguments, *, stdout, stderr, env=None, cwd=None, own_group=False):
        pipe = stdout == subprocess.PIPE
        if pipe:
            reading, writing = os.pipe()
            self.stdout = open(reading)
            stdout = open(writing, "wb")
        self._process = context().Process(
            target=_run,
            args=(str(path), [str(x) for x in arguments], os.fspath(cwd or os.getcwd()), own_group),
            stdout=stdout.fileno(),
            stderr=(stdout if stderr == subprocess.STDOUT else stderr).fileno(),
            env=env,
        )
        self._process.start()
        if pipe:
            stdout.close()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """As of ``Popen``: None while it runs, negative after a signal that it did not catch."""
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self.returncode

    def send_signal(self, signum):
        os.kill(self.pid, signum)


def run(path, *arguments, env=None, cwd=None):
    """Runs the program to its end, like ``subprocess.run``; stdout and stderr are kept as text."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        program = Program(path, arguments, stdout=stdout, stderr=stderr, env=env, cwd=cwd)
        code = program.wait()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess([path, *arguments], code, *texts)


def _run(path, arguments, cwd, own_group):
    """In the process that is forked off: becomes the program."""
    if own_group:
        os.setpgid(0, 0)
    os.chdir(cwd)
    sys.argv = [path, *arguments]
    sys.path.insert(0, os.path.dirname(path))
    # as in a Python that has just started
    multiprocessing.set_start_method(None, force=True)
    # what this process spawns comes off the same server, which it does not know to be running
    server = multiprocessing.forkserver
    server.ensure_running = server._forkserver.ensure_running = lambda: None
    with quick_spawn():
        try:
            runpy.run_path(path, run_name="__main__")
        finally:
            # multiprocessing ends its processes without them
            atexit._run_exitfuncs()
