"""Make a virtual environment for this project; `make` calls this.

Packages that the calling interpreter already has (torch, torchvision, Detectron2, ...) are used as
they are. The rest is installed in the versions of constraints.txt. Detectron2 is not on PyPI: it is
built from its official repository if that can be reached and compiled; otherwise the pure-Python
copy inside Kitware's geowatch wheel is installed, which is enough for everything here.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST_TESTED = (3, 10), (3, 12)
REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
COPY = "geowatch==0.20.0"
COPY_SHA256 = "b1c580a69e2966610b1b9c6ff9647800a17fa8898ef4c3737e48097a7630c381"
COPY_PATH = Path("geowatch_tpl/submodules_static/detectron2")
# what the copy imports; the official package lists its own requirements
COPY_REQUIREMENTS = [
    "fvcore", "iopath", "omegaconf", "hydra-core", "yacs", "cloudpickle", "termcolor", "black",
    "packaging", "tqdm", "tabulate", "pycocotools", "matplotlib", "tensorboard", "pillow",
    "opencv-python-headless", "kwimage",
]  # fmt: skip


# A package works if this import succeeds: it fails for versions that do not fit together.
PROBES = {
    "torch": "import torch",
    "torchvision": "import torchvision.ops, torchvision; torchvision.ops.nms",
    "detectron2": "import detectron2.engine, detectron2.modeling, detectron2",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the virtual environment, made if missing")
    parser.add_argument("--extras", default="", help="of setup.py to install, e.g. dev")
    args = parser.parse_args()
    folder = args.folder.resolve()
    if sys.version_info < OLDEST:
        sys.exit(
            f"bootstrap: {sys.executable} is Python {'.'.join(map(str, sys.version_info[:2]))}; "
            f"3.10 or newer is needed: PYTHON=/path/to/python make ..."
        )
    if sys.version_info[:2] > NEWEST_TESTED:
        say("this Python is newer than the tested 3.10 to 3.12; pinned versions may not fit it")
    inherited = inherit(folder)
    python = make_environment(folder)
    site_packages = Path(query(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    inherit_file = site_packages / "dab_detr_inherited.pth"
    # addsitedir, because a bare path would ignore the .pth files in it
    inherit_file.write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in inherited)
    )

    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text(applicable_constraints(python))
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        for name in ("torch", "torchvision"):
            found = working_version(python, name)
            say(f"{name}: {'using ' + found if found else 'installing the tested version'}")
        run([*pip, "setuptools", "wheel", "torch", "torchvision"])
        for name in ("torch", "torchvision"):
            require_working(python, name)
        install_detectron2(python, pip, folder, site_packages)
        # setuptools is installed: an isolated build would download another one
        extras = f"[{args.extras}]" if args.extras else ""
        run([*pip, "--no-build-isolation", "--editable", f"{ROOT}{extras}"])
    place = query(python, "import dab_detr; print(dab_detr.__path__[0])")
    if Path(place) != ROOT / "projects" / "dab_detr":
        sys.exit(
            f"bootstrap: {sys.executable} has another dab_detr, which would shadow this "
            "one: uninstall it there, or choose another interpreter with PYTHON=..."
        )
    say("ready:")
    run([str(python), "-m", "dab_detr.cli.main", "environment", "--check"])


def make_environment(folder: Path) -> Path:
    """The environment's interpreter; makes the environment if it is missing or unusable."""
    python = folder / "bin" / "python"
    if python.exists():
        version = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
        wanted = ".".join(map(str, sys.version_info[:2]))
        try:
            found = query(python, f"import pip; {version}")
        except (OSError, subprocess.CalledProcessError):
            say(f"{folder} is unusable; making a new one")
            shutil.rmtree(folder)
        else:
            if found != wanted:
                sys.exit(
                    f"bootstrap: {folder} has Python {found}, {sys.executable} is {wanted}: "
                    "remove it with `make clean`."
                )
            return python
    say(f"making {folder} from {sys.executable}")
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(
            f"bootstrap: {sys.executable} cannot make a virtual environment ({error}); install its "
            "venv package (python3-venv on Debian and Ubuntu) or choose another with PYTHON=..."
        )
    return python


def inherit(folder: Path) -> list[str]:
    """Site folders of this interpreter, if it has torch or Detectron2 and is not in ``folder``."""
    if Path(sys.prefix).resolve() == folder:
        return []
    useful = [name for name in ("torch", "detectron2") if working_version(sys.executable, name)]
    if not useful:
        return []
    say(f"{sys.executable} has {' and '.join(useful)}: using what is installed there")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return sorted(paths)


def applicable_constraints(python: Path) -> str:
    """constraints.txt, with the present versions of packages that are inherited."""
    code = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()"
        " if not str(d.locate_file('')).startswith(sys.prefix)}))"
    )
    present = {
        normalized(name): version for name, version in json.loads(query(python, code)).items()
    }
    lines = [f"{name}=={version}" for name, version in present.items()]
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name = normalized(re.match(r"[\w.-]*", line).group())
        # the present torch decides which torchvision fits
        if name not in present and not (name == "torchvision" and "torch" in present):
            lines.append(line)
    return "\n".join(lines)


def install_detectron2(python: Path, pip: list[str], folder: Path, site_packages: Path) -> None:
    """Use a present Detectron2, or build the official one, or install the pure-Python copy."""
    if found := working_version(python, "detectron2"):
        return say(f"Detectron2: using {found}")
    if official_is_reachable():
        say(f"Detectron2: building the official one at {COMMIT[:7]} (some minutes)")
        command = [*pip, "--no-build-isolation", f"detectron2 @ git+{REPOSITORY}@{COMMIT}"]
        if subprocess.run(command).returncode == 0 and working_version(python, "detectron2"):
            return say("Detectron2: the official one is installed")
        say("Detectron2: it could not be built (it needs a C++ compiler)")
    else:
        say("Detectron2: its official repository cannot be reached")
    say(f"Detectron2: installing the pure-Python copy in {COPY}")
    run([*pip, *COPY_REQUIREMENTS])
    target = folder / "opt" / "geowatch"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        requirement = Path(scratch) / "copy.txt"
        requirement.write_text(f"{COPY} --hash=sha256:{COPY_SHA256}\n")
        # outside site-packages, without its own requirements, which are large and old
        run(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--require-hashes",
                "--target",
                str(target),
                "--requirement",
                str(requirement),
            ]
        )
    (site_packages / "detectron2_copy.pth").write_text(f"{target / COPY_PATH}\n")
    require_working(python, "detectron2")


def official_is_reachable() -> bool:
    """Whether git can read Detectron2's repository without a password."""
    if shutil.which("git") is None:
        return False
    try:
        return not subprocess.run(
            ["git", "ls-remote", "--exit-code", REPOSITORY, "HEAD"],
            capture_output=True,
            timeout=30,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def working_version(python: str | Path, name: str) -> str | None:
    """Version and location of a package in that interpreter; None if it does not work."""
    code = f"{PROBES[name]}; print({name}.__version__, 'in', {name}.__path__[0])"
    command = [str(python), "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tools")
    return result.stdout.strip() if result.returncode == 0 else None


def require_working(python: Path, name: str) -> None:
    """Exit with the reason if a package does not work."""
    command = [str(python), "-W", "ignore", "-c", PROBES[name]]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tools")
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(
            f"bootstrap: {name} is installed but does not work ({reason}); repair it, or choose "
            "an interpreter without it with PYTHON=..."
        )


def query(python: Path, code: str) -> str:
    return subprocess.run(
        [str(python), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run(command: list[str]) -> None:
    result = subprocess.run(command, cwd=ROOT)
    if result.returncode:
        sys.exit(f"bootstrap: this failed: {' '.join(command)}")


def say(text: str) -> None:
    print(f"bootstrap: {text}", flush=True)


if __name__ == "__main__":
    main()
