"""The set-up script's decisions, without installing anything."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def bootstrap(load_tool):
    return load_tool("bootstrap")


@pytest.fixture
def recorded(bootstrap, monkeypatch):
    """Commands that would have been run; nothing is."""
    commands = []
    monkeypatch.setattr(bootstrap, "run", commands.append)
    return commands


def install(bootstrap, tmp_path):
    bootstrap.install_detectron2(Path("python"), ["pip"], tmp_path, tmp_path)


def test_a_working_detectron2_is_used(bootstrap, recorded, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bootstrap, "working_version", lambda python, name: "0.6 in /somewhere")
    install(bootstrap, tmp_path)
    assert recorded == []
    assert "using 0.6 in /somewhere" in capsys.readouterr().out


def test_without_the_repository_the_pinned_copy_is_installed(
    bootstrap, recorded, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(bootstrap, "working_version", lambda python, name: None)
    monkeypatch.setattr(bootstrap, "official_is_reachable", lambda: False)
    monkeypatch.setattr(bootstrap, "require_working", lambda python, name: None)
    install(bootstrap, tmp_path)
    assert "--require-hashes" in recorded[-1] and "--no-deps" in recorded[-1]
    path = (tmp_path / "detectron2_copy.pth").read_text()
    assert path == f"{tmp_path}/opt/geowatch/geowatch_tpl/submodules_static/detectron2\n"
    assert "cannot be reached" in capsys.readouterr().out


@pytest.mark.parametrize("builds", [True, False])
def test_the_official_one_is_tried_first(
    bootstrap, recorded, monkeypatch, tmp_path, capsys, builds
):
    attempts = []

    def build(command):
        attempts.append(command[-1])
        return subprocess.CompletedProcess(command, 0 if builds else 1)

    monkeypatch.setattr(
        bootstrap, "working_version", lambda *a: "0.6" if builds and attempts else None
    )
    monkeypatch.setattr(bootstrap, "official_is_reachable", lambda: True)
    monkeypatch.setattr(bootstrap, "require_working", lambda python, name: None)
    monkeypatch.setattr(bootstrap.subprocess, "run", build)
    install(bootstrap, tmp_path)
    assert attempts == [f"detectron2 @ git+{bootstrap.REPOSITORY}@{bootstrap.COMMIT}"]
    assert bool(recorded) == (not builds)
    said = capsys.readouterr().out
    assert ("official one is installed" if builds else "could not be built") in said


def test_what_is_there_already_is_pinned_to_what_it_is(bootstrap, monkeypatch):
    present = '{"torch": "2.11.0+cu130", "Pillow": "11.0.0"}'
    monkeypatch.setattr(bootstrap, "query", lambda python, code: present)
    lines = bootstrap.applicable_constraints(Path("python")).splitlines()
    assert "torch==2.11.0+cu130" in lines and "pillow==11.0.0" in lines
    assert not [line for line in lines if line.startswith("torch==2.14")]
    assert not [line for line in lines if line.startswith(("torchvision", "pillow==13"))]
    assert 'scipy==1.17.1 ; python_version >= "3.11"' in lines


def test_nothing_is_taken_from_an_interpreter_without_torch(bootstrap, monkeypatch, tmp_path):
    monkeypatch.setattr(bootstrap, "working_version", lambda python, name: None)
    assert bootstrap.inherit(tmp_path) == []
    monkeypatch.setattr(bootstrap, "working_version", lambda python, name: "2.11")
    assert any("site-packages" in path for path in bootstrap.inherit(tmp_path))
    assert bootstrap.inherit(Path(sys.prefix).resolve()) == []


def test_a_failed_environment_leaves_no_folder(bootstrap, monkeypatch, tmp_path):
    folder = tmp_path / ".venv"

    def fail(path, with_pip):
        (path / "bin").mkdir(parents=True)
        (path / "bin" / "python").symlink_to(sys.executable)
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(bootstrap.venv, "create", fail)
    with pytest.raises(SystemExit, match="python3-venv"):
        bootstrap.make_environment(folder)
    assert not folder.exists()


def test_an_environment_of_another_python_is_refused(bootstrap, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("")
    monkeypatch.setattr(bootstrap, "query", lambda python, code: "3.9")
    with pytest.raises(SystemExit, match=r"has Python 3\.9.*make clean"):
        bootstrap.make_environment(tmp_path)


def test_a_package_that_does_not_work_is_named(bootstrap, monkeypatch):
    monkeypatch.setitem(bootstrap.PROBES, "torchvision", "raise RuntimeError('no nms')")
    with pytest.raises(SystemExit, match="torchvision is installed but does not work.*no nms"):
        bootstrap.require_working(Path(sys.executable), "torchvision")
