"""Loads LazyConfigs by name or path, and adds the keys for Detectron2's YAML configs."""

import copy
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dab_detr.errors import InputError, one_line
from dab_detr.moved import MOVED_MODULES, refuse_moved_keys
from dab_detr.overrides import apply_override
from dab_detr.yaml_config import read_yaml

_PACKAGE = Path(__file__).resolve().parent


def config_directory() -> Path:
    """The folder of the project's configs: in the installed package or in the checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "configs"


def config_file(name: str | os.PathLike) -> str:
    """The path of a config: an existing file, or a name relative to :func:`config_directory`.

    ``dab_detr_r50_50ep.py`` and ``configs/dab_detr_r50_50ep.py`` both name the project's config.

    Raises:
        InputError: if there is no such file; the message lists the configs that exist.
    """
    path = Path(name)
    own = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for candidate in (path, config_directory() / own):
        if candidate.is_file():
            return str(candidate)
    configs = list_configs()
    same_name = [config for config in configs if Path(config).stem == path.stem]
    close = same_name or difflib.get_close_matches(own.as_posix(), configs, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise InputError(
        f"There is no config file {path}.{hint} The project's configs are {', '.join(configs)}."
    )


def list_configs() -> list[str]:
    """Names of the runnable configs, relative to :func:`config_directory`."""
    root = config_directory()
    shared = {"common", "models"}
    files = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    return [path.as_posix() for path in files if path.parts[0] not in shared]


def get_config(name: str | os.PathLike, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a LazyConfig: a Python file, which is run, or YAML, which is not.

    Args:
        name: see :func:`config_file`.
        overrides: ``key=value`` strings, see :func:`~dab_detr.overrides.apply_override`.

    Raises:
        InputError: for an unknown file, a file that cannot be loaded, an unknown or renamed key, or
            a malformed override.
    """
    path = config_file(name)
    if path.endswith((".yaml", ".yml")):
        cfg = read_yaml(Path(path))
    else:
        try:
            cfg = LazyConfig.load(path)
        except Exception as error:
            moved = MOVED_MODULES.get(error.name) if isinstance(error, ImportError) else None
            hint = f" (its content is now in {moved})" if moved else ""
            raise InputError(
                f"The config file {path} cannot be loaded: {one_line(error)}{hint}"
            ) from error
    _refuse_moved_keys(cfg, f"The config file {path}")
    for override in overrides:
        apply_override(cfg, override)
    _refuse_moved_keys(cfg, "The config")
    return cfg


def _refuse_moved_keys(cfg: DictConfig, where: str) -> None:
    model = cfg.get("model")
    if isinstance(model, DictConfig):
        refuse_moved_keys((f"model.{key}" for key in model), where)


def copy_config(cfg: DictConfig) -> DictConfig:
    """A copy of a config; objects in it, such as a model, are shared."""
    memo: dict[int, Any] = {}

    def share(node: Any) -> None:
        if isinstance(node, dict | list):
            for value in node.values() if isinstance(node, dict) else node:
                share(value)
        else:
            # deepcopy() treats it as copied already
            memo[id(node)] = node

    share(OmegaConf.to_container(cfg, resolve=False))
    return copy.deepcopy(cfg, memo)


def build(cfg: DictConfig, section: str) -> Any:
    """Instantiate a section of a config, e.g. ``model`` or ``train.writers.0``.

    Raises:
        InputError: if the section cannot be instantiated with its values.
    """
    node = cfg
    for part in section.split("."):
        node = node[int(part) if isinstance(node, ListConfig) else part]
    try:
        return instantiate(node)
    except (
        TypeError,
        ValueError,
        AssertionError,
        AttributeError,
        LookupError,
        OSError,
        ImportError,
        OmegaConfBaseException,
    ) as error:
        # the message of a KeyError is only the key
        raise InputError(
            f"The config's section {section} cannot be built: {one_line(error)}"
        ) from error


def target_of(node: Mapping) -> Callable | None:
    """The function or class of a LazyCall; None if not found, which :func:`build` reports."""
    target = node.get("_target_")
    try:
        target = locate(target) if isinstance(target, str) else target
    except Exception:
        return None
    return target if callable(target) else None


def add_dab_detr_config(cfg: CfgNode) -> None:
    """Add the keys that ``MODEL.META_ARCHITECTURE: DABDETR`` reads to a Detectron2 YAML config.

    The keys below ``MODEL.DAB_DETR`` are settings of the LazyConfig ``models/dab_detr_r50.py``, by
    their names in :data:`dab_detr.flat_config.PLACES`, with the paper's values.
    """
    from dab_detr.flat_config import flat_settings

    # Importing registers the meta-architecture.
    from dab_detr.modeling import DABDETR  # noqa: F401

    def upper(settings: dict) -> dict:
        return {k.upper(): upper(v) if isinstance(v, dict) else v for k, v in settings.items()}

    cfg.MODEL.DAB_DETR = CfgNode(upper(flat_settings()))
