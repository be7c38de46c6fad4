"""LazyConfigs as YAML, such as the ``config.yaml`` that every training writes: data, no code.

Detectron2's own loader runs what such a file says while reading it, and ``instantiate`` would call
any function that it names. Here it can name what this project and Detectron2 build models, data and
optimizers of, and nothing else. A Python config has no such bounds: it is a program.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from dab_detr.errors import InputError
from dab_detr.moved import current_name, use_current_names

# where the classes and functions that a file names have to be defined
_MODULES = (
    "dab_detr.data",
    "dab_detr.engine.optimizer",
    "dab_detr.engine.writers",
    "dab_detr.evaluation.coco_evaluator",
    "dab_detr.evaluation.voc_evaluator",
    "dab_detr.modeling",
    "detectron2.data",
    "detectron2.evaluation",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "fvcore.common.param_scheduler",
    "torch.nn",
    "torch.optim",
)
# ${train.output_dir} or ${..lr}: another key; all else in braces calls a function
_REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}")


def read_yaml(path: Path) -> DictConfig:
    """Read a LazyConfig without running anything.

    Raises:
        InputError: if it is no YAML, no mapping, or names what a YAML config may not name.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
        if not isinstance(content, dict):
            raise ValueError("it has no sections.")
        use_current_names(content)
        _check(content)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The config file {path} does not load: {reason}") from error
    return OmegaConf.create(content, flags={"allow_objects": True})


class _Loader(yaml.SafeLoader):
    """YAML's own types, and the two tags that a config with tuples and classes is written with."""

    def _tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))

    def _named(self, name: str, node: yaml.Node) -> Any:
        return _locate(current_name(name))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader._tuple)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", _Loader._named)


def _check(node: Any) -> None:
    if isinstance(node, dict):
        if "_target_" in node:
            _locate(node["_target_"])
        for key, value in node.items():
            _check(key)
            _check(value)
    elif isinstance(node, list | tuple):
        for value in node:
            _check(value)
    elif isinstance(node, str) and "${" in _REFERENCE.sub("", node):
        raise ValueError(f"{node!r} is no reference to another key, as ${{train.output_dir}} is.")


def _locate(name: Any) -> Any:
    """The class or function of that name, which has to be one of :data:`_MODULES`."""
    # importing a module runs it, so that of a stranger is not even imported
    if isinstance(name, str) and name.split(".")[0] in {x.split(".")[0] for x in _MODULES}:
        try:
            found = locate(name)
        except Exception as error:
            raise ValueError(f"there is no {name}.") from error
        # a module also has what it imports itself
        home = getattr(found, "__module__", None) or ""
        if callable(found) and any(home == x or home.startswith(f"{x}.") for x in _MODULES):
            return found
    raise ValueError(
        f"it names {name!r}, which is none of the classes and functions that a YAML config may "
        f"name (those of {', '.join(_MODULES)}); a Python config may name any."
    )
