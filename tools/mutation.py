"""Mutation tests: makes small faults in the package, and says which of them no test finds.

Faults are cosmic-ray's: another operator or number, a condition negated, a decorator removed, a
loop without a round. Of each area a random sample is tried, at most one fault per place. Everything
happens in temporary copies of the working tree; this one is not touched.

    python tools/mutation.py modeling hooks --mutants 40
"""

import argparse
import contextlib
import difflib
import importlib.util
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("projects/dab_detr")
# imported once, before the processes that try the faults are forked: nothing of this project
PRELOADED = (
    "pytest", "_pytest.assertion.rewrite", "torch", "torch.utils.tensorboard", "torchvision",
    "timm", "transformers.models.dab_detr.modeling_dab_detr", "scipy.optimize",
    "pycocotools.cocoeval", "detectron2.engine", "detectron2.evaluation",
    "detectron2.model_zoo", "fvcore.nn", "detectron2.utils.visualizer",
    "matplotlib.backends.backend_agg",
)  # fmt: skip
# annotations are full of the first, and that a class is abstract needs no test
EXCLUDED = ("BitOr", "RemoveDecorator")


class Area(NamedTuple):
    """Files whose faults the tests have to find; both are globs, quick tests first."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = {
    "modeling": Area(
        ("modeling/*.py", "modeling/queries/*.py"),
        (
            "tests/modeling/test_[adfmpt]*.py",
            "tests/modeling/test_boxes.py",
            "tests/modeling/test_criterion.py",
            "tests/tools/test_check_reference.py",
        ),
    ),
    "trainer": Area(
        ("engine/trainer.py", "engine/nonfinite.py", "engine/means.py", "engine/course.py"),
        (
            "tests/engine/test_course.py",
            "tests/engine/test_nonfinite.py",
            "tests/engine/test_training.py",
        ),
    ),
    "annotations": Area(
        ("data/records.py", "data/boxes.py", "data/coco.py", "data/voc.py", "data/catalog.py"),
        ("tests/data/test_[cdv]*.py",),
    ),
    "stream": Area(
        ("data/stream.py", "data/loader.py", "data/mapper.py", "data/images.py"),
        (
            "tests/data/test_stream.py",
            "tests/data/test_images.py",
            "tests/data/test_data_warnings.py",
        ),
    ),
    "conversion": Area(
        ("checkpoint/*.py",),
        (
            "tests/checkpoint/test_[cmrv]*.py",
            "tests/checkpoint/test_transformers.py",
            "tests/checkpoint/test_own_files.py",
        ),
    ),
    "hooks": Area(
        ("engine/hooks.py", "engine/writers.py", "engine/evaluation.py", "engine/progress.py"),
        (
            "tests/engine/test_hooks.py",
            "tests/evaluation/test_evaluation.py",
            "tests/engine/test_console.py",
        ),
    ),
}


class Result(NamedTuple):
    area: str
    place: str
    change: str
    outcome: str
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("areas", nargs="*", help=f"all by default: {', '.join(AREAS)}")
    parser.add_argument("--mutants", type=int, default=30, help="faults per area (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    options = parser.parse_args(arguments)
    if unknown := set(options.areas) - set(AREAS):
        parser.error(f"no area {', '.join(sorted(unknown))}; there are {', '.join(AREAS)}")
    if importlib.util.find_spec("cosmic_ray") is None:
        parser.error("cosmic-ray is missing: pip install '.[dev]'")
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in PRELOADED:
        importlib.import_module(name)
    areas = options.areas or list(AREAS)
    context = multiprocessing.get_context("fork")
    tasks, results = context.Queue(), context.Queue()
    chosen = [x for area in areas for x in sample(area, options.mutants, options.seed)]
    for task in chosen:
        tasks.put(task)
    workers = []
    for _ in range(options.workers):
        tasks.put(None)
        workers.append(context.Process(target=work, args=(areas, tasks, results)))
        workers[-1].start()
    found = []
    for _ in chosen:
        found.append(results.get())
        if isinstance(found[-1], str):
            for worker in workers:
                worker.terminate()
            print(found[-1], file=sys.stderr)
            return 1
        print(f"{len(found)}/{len(chosen)} {' '.join(map(str, found[-1][:4]))}", flush=True)
    print(report(found))
    return 0


def sample(area: str, count: int, seed: int) -> list[tuple]:
    """Faults as (area, file, operator, occurrence, line)."""
    from cosmic_ray.commands.init import _all_work_items

    files = sorted(x for glob in AREAS[area].files for x in (ROOT / PACKAGE).glob(glob))
    places = {}
    for item in _all_work_items(files, {}):
        (fault,) = item.mutations
        if not any(name in fault.operator_name for name in EXCLUDED):
            place = (Path(fault.module_path).relative_to(ROOT), fault.start_pos)
            places.setdefault(place, []).append((fault.operator_name, fault.occurrence))
    generator = random.Random(f"{area} {seed}")
    chosen = generator.sample(sorted(places, key=str), min(count, len(places)))
    return [
        (area, str(file), *generator.choice(places[file, position]), position[0])
        for file, position in chosen
    ]


def work(areas: list[str], tasks, results) -> None:
    """A process that tries faults in its own copy of the tree until there are no more."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as copy:
        copy_tree(Path(copy))
        os.chdir(copy)
        limits = {}
        while (task := tasks.get()) is not None:
            area, file, operator, occurrence, line = task
            if area not in limits:
                outcome, seconds = try_tests(tests_of(area), 3600)
                if outcome != "survived":
                    text = Path("output.txt").read_text()
                    results.put(f"{text}\nThe tests of {area} fail without any fault.")
                    return
                limits[area] = 60 + 3 * seconds
            path = Path(file)
            with use_mutation(path, get_operator(operator)(), occurrence) as (before, after):
                if after is None:
                    # an operator may find no place when it is asked again
                    results.put(Result(area, f"{path}:{line}", "", "no fault", 0.0))
                    continue
                outcome, seconds = try_tests(tests_of(area, path.name), limits[area])
            change = "\n".join(
                f"{sign} {text.strip()}"
                for sign, text in different_lines(before.splitlines(), after.splitlines())
            )
            place = f"{path.relative_to(PACKAGE)}:{line}"
            results.put(Result(area, place, change, outcome, seconds))


def copy_tree(target: Path) -> None:
    """Copies what git does not ignore, as it is now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        with contextlib.suppress(FileNotFoundError):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def tests_of(area: str, name: str = "") -> list[str]:
    """The test modules of an area; first the one that mirrors the file."""
    found = [str(x) for glob in AREAS[area].tests for x in sorted(Path().glob(glob))]
    return sorted(found, key=lambda test: Path(test).name != f"test_{name}")


def try_tests(tests: list[str], limit: float) -> tuple[str, float]:
    """How the fault in this folder ended (killed, timeout, survived), and the seconds."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        run_tests(tests)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - start > limit:
            break
        time.sleep(0.05)
    # and what the tests have started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    seconds = time.monotonic() - start
    if not ended[0]:
        os.waitpid(child, 0)
        return "timeout", seconds
    return "survived" if ended[1] == 0 else "killed", seconds


def run_tests(tests: list[str]):
    """In the process that was forked: becomes a run of pytest that ends at the first failure."""
    import pytest

    code = 1
    try:
        os.setsid()
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, str(Path(PACKAGE).parent.resolve()))
        os.environ["PYTHONPATH"] = sys.path[0]
        code = pytest.main(["-x", "-q", "-m", "not long", "-p", "no:cacheprovider", *tests])
    finally:
        os._exit(int(code))


def different_lines(before: list[str], after: list[str]):
    """The lines that a fault has changed, as (sign, line)."""
    for line in difflib.ndiff(before, after):
        if line[0] in "+-":
            yield line[0], line[2:]


def report(results: list[Result]) -> str:
    """A table of the areas, and the faults that no test has found."""
    rows = []
    for area in dict.fromkeys(x.area for x in results):
        outcomes = [x.outcome for x in results if x.area == area]
        counts = [outcomes.count(x) for x in ("killed", "timeout", "survived")]
        rows.append([area, len(outcomes), *counts])
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 5))])
    headers = ["area", "mutants", "killed", "timeout", "survived"]
    survivors = [f"{x.place}\n{x.change}" for x in results if x.outcome == "survived"]
    return "\n\n".join([tabulate(rows, headers, tablefmt="github"), *survivors])


if __name__ == "__main__":
    sys.exit(main())
