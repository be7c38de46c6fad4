import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from dab_detr import environment
from dab_detr.config import list_configs

ROOT = Path(__file__).parents[1]


def test_a_wheel_carries_the_package_and_all_configs(tmp_path):
    # a copy, because building leaves traces in the source folder
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("projects/dab_detr", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(copy)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    # away from the checkout only the wheel's own files can answer
    program = f"""
import sys
sys.path.insert(0, {str(wheel.with_suffix(""))!r})
import dab_detr, dab_detr.config
assert dab_detr.__file__.startswith(sys.path[0]), dab_detr.__file__
print(*dab_detr.config.list_configs())
print(dab_detr.get_config("dab_detr_r50_50ep.py").model.transformer.queries.num_queries)
"""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.with_suffix(""))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [*list_configs(), "300"]


def test_releases_that_fail_on_common_files_are_not_installed(tmp_path):
    """pycocotools 2.0.9 and 2.0.10 need "info" in annotation files, which many lack."""
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)],
        cwd=ROOT,
        check=True,
    )
    lines = (tmp_path / "dab_detr.egg-info" / "requires.txt").read_text().split("\n\n")[0]
    (wanted,) = (x for x in map(Requirement, lines.split()) if x.name == "pycocotools")
    assert list(wanted.specifier.filter(["2.0.8", "2.0.9", "2.0.10", "2.0.11"])) == [
        "2.0.8", "2.0.11",
    ]  # fmt: skip


def test_environment_names_the_parts():
    text = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "dab_detr.cli.main", "environment"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for word in ("torch", "torchvision", "detectron2", "CUDA", "pytest"):
        assert f"\n{word} " in text


def test_environment_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    rows = dict(environment.describe())
    assert rows["detectron2"].startswith("missing")
