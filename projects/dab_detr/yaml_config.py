"""Reads LazyConfigs in YAML, such as the ``config.yaml`` of a training, without running code.

Detectron2's own loader can run code in such a file, and ``instantiate`` calls any function that it
names. Here a file may only name the classes and functions with which this project and Detectron2
build models, data and optimizers. A Python config has no such limits: it is a program.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from dab_detr.errors import InputError, one_line
from dab_detr.moved import current_name, use_current_names

# modules whose classes and functions a file may name
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
# ${train.output_dir} or ${..lr} refers to another key; anything else in ${} calls a resolver
_REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}")


def read_yaml(path: Path) -> DictConfig:
    """Read a LazyConfig without running anything.

    Raises:
        InputError: if it is not YAML, not a mapping, or names something that is not allowed.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping with sections.")
        use_current_names(content)
        _check(content)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        reason = one_line(error, with_type=False)
        raise InputError(f"The config file {path} cannot be loaded: {reason}") from error
    return OmegaConf.create(content, flags={"allow_objects": True})


class _Loader(yaml.SafeLoader):
    """Standard YAML types, and the two tags with which tuples and classes are written."""

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
        raise ValueError(f"{node!r} is not a reference to a key, such as ${{train.output_dir}}.")


def _locate(name: Any) -> Any:
    """The class or function of that name, which has to be in one of :data:`_MODULES`."""
    found = locate_in(name, _MODULES)
    if found is None:
        raise ValueError(
            f"it names {name!r}, but a YAML config may only name classes and functions of "
            f"{', '.join(_MODULES)}; a Python config may name any."
        )
    return found


def locate_in(name: Any, modules: Sequence[str]) -> Any:
    """The class or function of that name; None if it is not defined in one of the modules.

    Raises:
        ValueError: if one of their packages should have it, but does not.
    """
    # importing a module runs it, so other modules are not imported
    if isinstance(name, str) and name.split(".")[0] in {x.split(".")[0] for x in modules}:
        try:
            found = locate(name)
        except Exception as error:
            raise ValueError(f"there is no {name}.") from error
        # a module may also have names that it imports from other modules
        home = getattr(found, "__module__", None) or ""
        if callable(found) and any(home == x or home.startswith(f"{x}.") for x in modules):
            return found
    return None
