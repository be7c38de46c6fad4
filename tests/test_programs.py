"""The tests' own way of starting programs behaves like Python's."""

import os
import signal
import subprocess
import sys
import textwrap

import programs
import pytest


@pytest.fixture
def program(tmp_path):
    """A function that writes a program."""

    def write(text):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def by_python(path, *arguments, env, cwd):
    return subprocess.run(
        [sys.executable, "-W", "ignore", path, *arguments],
        capture_output=True, text=True, env=env, cwd=cwd,
    )  # fmt: skip


ENDS = {
    "well": ("pass", 0),
    "with a code": ("sys.exit(7)", 7),
    "with words": ("sys.exit('words')", 1),
    "by an error": ("raise ValueError('wrong')", 1),
    "by a signal": ("sys.stdout.flush(); os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_is_run_as_python_runs_it(program, tmp_path, end):
    path = program(f"""
        import atexit, json, os, signal, sys, warnings
        import beside

        atexit.register(print, "at exit")
        warnings.warn("is ignored")
        print("error", file=sys.stderr)
        print(json.dumps([
            __name__, __file__, beside.__file__, sys.argv, os.getcwd(), dict(os.environ),
            sys.stdout.isatty(), signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        ]))
        {ENDS[end][0]}
    """)
    (tmp_path / "beside.py").touch()
    (tmp_path / "folder").mkdir()
    how = {"env": {**os.environ, "ONE": "1"}, "cwd": tmp_path / "folder"}
    results = [start(path, "--some", "words", **how) for start in (programs.run, by_python)]
    forked, started = results
    assert forked.returncode == started.returncode == ENDS[end][1]
    assert forked.stdout == started.stdout and '"ONE": "1"' in forked.stdout
    assert forked.stderr.splitlines()[0] == started.stderr.splitlines()[0] == "error"
    assert forked.stderr.splitlines()[-1] == started.stderr.splitlines()[-1]


def test_programs_share_nothing_but_imports(program):
    path = program("""
        import os, random, sys, numpy
        imported = "dab_detr.engine.main" in sys.modules
        import dab_detr

        threads = len(os.listdir("/proc/self/task"))
        print(imported, threads, hasattr(dab_detr, "mark"), random.random(), numpy.random.rand())
        dab_detr.mark = True
    """)
    first, second = (programs.run(path).stdout.split() for _ in range(2))
    assert first[:3] == second[:3] == ["True", "1", "False"]
    assert first[3] != second[3] and first[4] != second[4]


def test_a_program_gets_signals_and_starts_processes(program):
    path = program("""
        import multiprocessing, os, signal, sys

        def work(queue):
            print("worker", flush=True)
            print("error", file=sys.stderr)
            queue.put((os.getpid(), os.environ["ONE"], "dab_detr.engine.main" in sys.modules))

        if __name__ == "__main__":
            signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5))
            os.environ["ONE"] = "1"
            spawn = multiprocessing.get_context("spawn")
            queue = spawn.Queue()
            worker = spawn.Process(target=work, args=(queue,))
            worker.start()
            pid, one, imported = queue.get()
            worker.join()
            print(pid != os.getpid(), worker.pid == pid, worker.exitcode, one, imported)
            print(os.getpgid(0) == os.getpid(), flush=True)
            signal.pause()
    """)
    program = programs.Program(
        path, [], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, own_group=True
    )
    lines = [program.stdout.readline() for _ in range(4)]
    assert lines == ["worker\n", "error\n", "True True 0 1 True\n", "True\n"]
    assert program.returncode is None
    program.send_signal(signal.SIGUSR1)
    assert program.stdout.read() == "" and program.wait() == 5
