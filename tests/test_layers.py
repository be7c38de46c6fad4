"""The order of the package's parts: each imports only from those below it."""

import ast
from pathlib import Path

import dab_detr

ROOT = Path(dab_detr.__file__).parent
# Lowest first. Parts of one line do not import each other. "" are the modules that lie directly in
# the package; a part of a part has a line of its own where the order matters within it, too.
LAYERS = [
    [""],
    ["modeling"],
    ["checkpoint", "data"],
    ["visualization"],
    ["inference"],
    ["analysis"],
    ["evaluation"],
    ["engine.launching"],
    ["engine"],
    ["studies"],
    ["app"],
    ["cli"],
]
# what goes up all the same: (file, imported part) -> why
EXCEPTIONS = {
    ("modeling/meta_arch.py", "data"): "Detectron2's YAML programs load data after the model",
    ("config.py", "modeling"): "importing registers the meta-architecture for YAML configs",
}
MOST_LINES = 300
HEIGHTS = {part: height for height, parts in enumerate(LAYERS) for part in parts}
FILES = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.rglob("*.py"))]
FILES = [name for name in FILES if not name.startswith("configs/")]


def part_of(module):
    """The part of LAYERS that a module belongs to, named without ``dab_detr.``."""
    parts = [x for x in HEIGHTS if x and (module == x or module.startswith(f"{x}."))]
    is_in_folder = (ROOT / module.split(".")[0]).is_dir() and module
    if not parts and is_in_folder:
        raise AssertionError(f"{module} is in no layer: add its folder to LAYERS")
    return max(parts, key=len, default="")


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(source, module):
    """The package's modules that a file imports, anywhere in it, named without ``dab_detr.``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                home = ".".join(["dab_detr", *module.split(".")[: -node.level], *home.split(".")])
            # "from a import b" may mean the module a.b
            names = [f"{home.strip('.')}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "dab_detr":
                # what `dab_detr` itself offers is imported from elsewhere
                rest = dab_detr._EXPORTS.get(rest, name).partition(".")[2]
                found.add(rest if is_module(rest) else rest.rpartition(".")[0])
    return found


def upward(name, source):
    """The parts above it, or beside it, from which a file imports."""
    module = name.removesuffix(".py").replace("/", ".")
    own = part_of(module.removesuffix(".__init__"))
    used = {part_of(other) for other in imported(source, module)} - {own}
    return {part for part in used if HEIGHTS[part] >= HEIGHTS[own]}


def test_no_import_goes_up():
    found = {(name, part) for name in FILES for part in upward(name, (ROOT / name).read_text())}
    # an exception that is no longer needed has to go
    assert found == set(EXCEPTIONS)


def test_imports_that_go_up_are_seen():
    cases = {
        "data/coco.py": "def f():\n    from dab_detr.evaluation.evaluate import evaluate\n",
        "checkpoint/reading.py": "import dab_detr.data.coco as coco\n",
        "files.py": "from dab_detr import visualization\n",
        "data/boxes.py": "from dab_detr import inference_copy, get_config, __version__\n",
        "inference/copy.py": "from ..engine import training\n",
        "engine/launching/processes.py": "if True:\n    from dab_detr.engine import trainer\n",
    }
    assert {name: upward(name, source) for name, source in cases.items()} == {
        "data/coco.py": {"evaluation"},
        "checkpoint/reading.py": {"data"},
        "files.py": {"visualization"},
        "data/boxes.py": {"inference"},
        "inference/copy.py": {"engine"},
        "engine/launching/processes.py": {"engine"},
    }
    below = (
        "from dab_detr import get_config\nfrom . import copy\nfrom dab_detr.modeling import DABDETR"
    )
    assert not upward("inference/copy.py", below)


def test_every_file_can_be_read_in_one_sitting():
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in FILES}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}
