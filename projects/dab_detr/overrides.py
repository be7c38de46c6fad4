"""``key=value`` overrides: Hydra's grammar, but text values are taken literally."""

import difflib

import yaml
from detectron2.config import LazyConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from dab_detr.errors import InputError, one_line
from dab_detr.moved import MOVED_KEYS, refuse_moved_keys


def apply_override(cfg: DictConfig, override: str) -> None:
    """Change a key of a config.

    A value is parsed by Hydra's grammar: numbers, True, null, [lists], {dictionaries}, text with or
    without quotes. If the config's value is text, such as a path, a value that this grammar does
    not accept, or parses as a number, is taken literally.

    Args:
        cfg: changed in place.
        override: ``key=value``; ``+key=value`` adds a key.

    Raises:
        InputError: for an unknown key, or a value that is not understood.
    """
    key, equals, text = override.partition("=")
    if not equals or key.startswith("-"):
        raise InputError(f"The override {override!r} is not of the form key=value.")
    if not key.startswith("+"):
        _require_key(cfg, key)
    try:
        if key.startswith("+"):
            LazyConfig.apply_overrides(cfg, [override])
        else:
            before = _get(cfg, key)
            value = _value(override, text, is_text=isinstance(before, str))
            if isinstance(before, bool) and not _may_be_switch(value):
                raise InputError(f"{key} is {value!r}; True or False is needed.")
            if isinstance(before, DictConfig) and isinstance(value, list):
                raise ValueError("it is a section.")
            OmegaConf.update(cfg, key, value, merge=True)
            # a reference to another key, ${...}, has to resolve
            OmegaConf.select(cfg, key)
    except InputError:
        raise
    except Exception as error:
        name = key.lstrip("+")
        raise InputError(
            f"The override {override!r} cannot be applied: {one_line(error, with_type=False)} "
            "(A list is written "
            f"[a,b]; text with special characters in quotes of its own: '{name}=\"a, b\"'.)"
        ) from error


def _value(override: str, text: str, *, is_text: bool) -> object:
    """Parse the value of an override.

    Args:
        override: key and value. text: the value only.
        is_text: the config's current value is text; null and lists are also allowed.
    """
    try:
        parsed = OverridesParser.create().parse_override(override)
        if parsed.is_sweep_override():
            raise ValueError("it is a sweep; one value is needed.")
        value = parsed.value()
    except Exception:
        # Hydra does not accept non-Latin characters, not even in lists
        value = _list(text)
        if value is None and is_text:
            value = text
        if value is None:
            raise ValueError("its value is not understood.") from None
    # a folder may be named 2024, or a,b
    return text if is_text and isinstance(value, bool | int | float | dict) else value


def _may_be_switch(value: object) -> bool:
    """Whether a value can be that of a switch; any other text or number would count as True."""
    return value is None or isinstance(value, bool) or (isinstance(value, str) and "${" in value)


def _list(text: str) -> list | None:
    if not text.startswith("["):
        return None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return value if isinstance(value, list) else None


def _get(cfg: DictConfig, key: str) -> object:
    """The value of a key, resolved; None if its reference cannot be resolved."""
    try:
        return OmegaConf.select(cfg, key)
    except Exception:
        return None


def _require_key(cfg: DictConfig, key: str) -> None:
    """Refuse a key that is not in the config, which would be added and then ignored."""
    refuse_moved_keys([key], f"The override of {key}")
    node = cfg
    for part in key.split("."):
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        elif isinstance(node, DictConfig) and part in node:
            node = node._get_node(part)
        else:
            # users may also misspell the short names of version 0.1
            names = {name: name for name in _keys(cfg)} | MOVED_KEYS
            close = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
            present = dict.fromkeys(names[name] for name in close)
            hint = f"; did you mean {' or '.join(present)}?" if close else "."
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
