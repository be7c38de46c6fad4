"""Configs: LazyConfig files by name or path, and the keys of the YAML flavour."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from dab_detr.errors import InputError

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
    """Load a LazyConfig.

    Args:
        name: see :func:`config_file`.
        overrides: ``key=value`` strings in Hydra's grammar; ``+key=value`` adds a key that the file
            does not have.

    Raises:
        InputError: for an unknown file, a file that does not load, an unknown key or a malformed
            override.
    """
    path = config_file(name)
    try:
        cfg = LazyConfig.load(path)
    except Exception as error:
        raise InputError(f"The config file {path} does not load: {_one_line(error)}") from error
    for override in overrides:
        _apply_override(cfg, override)
    return cfg


def _apply_override(cfg: DictConfig, override: str) -> None:
    key, equals, _ = override.partition("=")
    if not equals or key.startswith("-"):
        raise InputError(
            f"The override {override!r} is not of the form key=value (options such as --resume go "
            "before the overrides)."
        )
    if not key.startswith("+"):
        _require_key(cfg, key)
    try:
        LazyConfig.apply_overrides(cfg, [override])
    except Exception as error:
        raise InputError(
            f"The override {override!r} cannot be applied: {_one_line(error)}"
        ) from error


def _require_key(cfg: DictConfig, key: str) -> None:
    """Refuse a key that is not in the config: it would be added and then ignored."""
    node = cfg
    for part in key.split("."):
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        elif isinstance(node, DictConfig) and part in node:
            node = node._get_node(part)
        else:
            close = difflib.get_close_matches(key, _keys(cfg), n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else "."
            raise InputError(f"The config has no key {key!r}{hint} (+{key}=VALUE adds a new one.)")


def _keys(cfg: DictConfig) -> list[str]:
    """All keys of a config with their paths, e.g. ``train.max_iter``."""
    keys = []

    def visit(node, prefix):
        if isinstance(node, (dict, list)):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for name, value in items:
                if name != "_target_":
                    keys.append(f"{prefix}{name}")
                    visit(value, f"{prefix}{name}.")

    visit(OmegaConf.to_container(cfg, resolve=False), "")
    return keys


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def add_dab_detr_config(cfg: CfgNode) -> None:
    """Add the keys that ``MODEL.META_ARCHITECTURE: DABDETR`` reads to a Detectron2 YAML config.

    Every key below ``MODEL.DAB_DETR`` but the first four is the argument of that name of
    :class:`~dab_detr.modeling.transformer.DABTransformer`, with the paper's value.
    """
    # Importing registers the meta-architecture.
    import dab_detr.modeling  # noqa: F401

    cfg.MODEL.DAB_DETR = CfgNode(
        {
            "IN_FEATURES": ["res5"],
            "NUM_CLASSES": 80,
            "NUM_SELECT": 300,
            "LOSS": {
                "COST_CLASS": 2.0,
                "COST_BBOX": 5.0,
                "COST_GIOU": 2.0,
                "WEIGHT_CLASS": 1.0,
                "WEIGHT_BBOX": 5.0,
                "WEIGHT_GIOU": 2.0,
                "FOCAL_ALPHA": 0.25,
                "FOCAL_GAMMA": 2.0,
            },
            "D_MODEL": 256,
            "NUM_HEADS": 8,
            "NUM_ENCODER_LAYERS": 6,
            "NUM_DECODER_LAYERS": 6,
            "FFN_DIM": 2048,
            "DROPOUT": 0.0,
            "NUM_QUERIES": 300,
            "NUM_PATTERNS": 0,
            "QUERY_DIM": 4,
            "ANCHOR_INIT": "normal",
            "FREEZE_ANCHOR_CENTERS": False,
            "MODULATE_HW_ATTENTION": True,
            "UPDATE_ANCHORS": True,
            "SHARE_BOX_HEAD": True,
            "KEY_TEMPERATURE": 20.0,
            "QUERY_TEMPERATURE": 10000.0,
        }
    )
