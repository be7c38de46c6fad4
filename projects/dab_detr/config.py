"""Configs: LazyConfig files by name or path, and the keys of the YAML flavour."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dab_detr.errors import InputError
from dab_detr.moved import MOVED_MODULES, refuse_moved_keys
from dab_detr.overrides import apply_override
from dab_detr.yaml_config import read_yaml

_PACKAGE = Path(__file__).resolve().parent


def config_directory() -> Path:
    """Where the project's configs lie: in the installed package or at the top of the checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "configs"


def config_file(name: str | os.PathLike) -> str:
    """The path of a config: an existing file, or a name below :func:`config_directory`.

    ``dab_detr_r50_50ep.py`` and ``configs/dab_detr_r50_50ep.py`` both mean the project's own.

    Raises:
        InputError: if there is no such file; the message lists the configs that exist.
    """
    path = Path(name)
    own = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for candidate in (path, config_directory() / own):
        if candidate.is_file():
            return str(candidate)
    raise InputError(
        f"There is no config file {path}; the project's own are {', '.join(list_configs())}."
    )


def list_configs() -> list[str]:
    """Names of the configs that can be run, relative to :func:`config_directory`."""
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
        InputError: for an unknown file, a file that does not load, an unknown key, one that has
            moved, or a malformed override.
    """
    path = config_file(name)
    if path.endswith((".yaml", ".yml")):
        cfg = read_yaml(Path(path))
    else:
        try:
            cfg = LazyConfig.load(path)
        except Exception as error:
            moved = MOVED_MODULES.get(error.name) if isinstance(error, ImportError) else None
            hint = f" (what it had is now in {moved})" if moved else ""
            raise InputError(
                f"The config file {path} does not load: {_one_line(error)}{hint}"
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
    """A config of its own, to be changed; objects in it, such as a model, are the same ones."""
    memo: dict[int, Any] = {}

    def share(node: Any) -> None:
        if isinstance(node, dict | list):
            for value in node.values() if isinstance(node, dict) else node:
                share(value)
        else:
            # what deepcopy() takes for copied already
            memo[id(node)] = node

    share(OmegaConf.to_container(cfg, resolve=False))
    return copy.deepcopy(cfg, memo)


def build(cfg: DictConfig, section: str) -> Any:
    """Instantiate a section of a config, e.g. ``model`` or ``train.writers.0``.

    Raises:
        InputError: if the section's values do not make sense to what they are for.
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
        # an exception of a look-up says no more than the key
        raise InputError(
            f"The config's section {section} does not work: {_one_line(error)}"
        ) from error


def target_of(node: Mapping) -> Callable | None:
    """What a LazyCall calls; None if that cannot be found, as :func:`build` will say."""
    target = node.get("_target_")
    try:
        target = locate(target) if isinstance(target, str) else target
    except Exception:
        return None
    return target if callable(target) else None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def add_dab_detr_config(cfg: CfgNode) -> None:
    """Add the keys that ``MODEL.META_ARCHITECTURE: DABDETR`` reads to a Detectron2 YAML config.

    Every key below ``MODEL.DAB_DETR`` is a setting of the LazyConfig ``models/dab_detr_r50.py``, by
    its name in :data:`dab_detr.flat_config.PLACES`, with the paper's value.
    """
    from dab_detr.flat_config import flat_settings

    # Importing registers the meta-architecture.
    from dab_detr.modeling import DABDETR  # noqa: F401

    def upper(settings: dict) -> dict:
        return {k.upper(): upper(v) if isinstance(v, dict) else v for k, v in settings.items()}

    cfg.MODEL.DAB_DETR = CfgNode(upper(flat_settings()))
