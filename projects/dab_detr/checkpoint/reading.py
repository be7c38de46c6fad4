"""Reads checkpoint files of several formats without running code in them."""

import argparse
import collections
import datetime
import json
import os
import pathlib
import pickle
import re
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dab_detr.checkpoint.description import KEY
from dab_detr.checkpoint.prefixes import without_wrappers
from dab_detr.errors import InputError, listed

_HF_FILES = ("model.safetensors", "pytorch_model.bin")
# suffix of the index of a sharded checkpoint
_INDEX = ".index.json"


def _dictionary(*_: object) -> dict:
    """Stands in for ``defaultdict``, which PyTorch's reader cannot fill."""
    return {}


# Plain data types that trainers store beside the weights: (module, name) -> what is built.
_DATA_GLOBALS = {
    # the published checkpoints store their command line
    ("argparse", "Namespace"): argparse.Namespace,
    ("types", "SimpleNamespace"): types.SimpleNamespace,
    # for a model's arguments in Lightning
    ("lightning_fabric.utilities.data", "AttributeDict"): dict,
    ("lightning.fabric.utilities.data", "AttributeDict"): dict,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): dict,
    ("collections", "defaultdict"): _dictionary,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): collections.Counter,
    **{
        ("builtins", kind.__name__): kind
        for kind in (int, float, complex, str, bool, list, dict, tuple, set, frozenset, slice)
    },
    **{
        ("datetime", name): getattr(datetime, name)
        for name in ("date", "datetime", "time", "timedelta", "timezone")
    },
    # a path of another operating system can only be built as a pure path
    **{
        (module, f"{pure}{system}Path"): getattr(pathlib, f"Pure{system}Path")
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("Posix", "Windows")
    },
}
# needed for pickled arrays, with numpy's names before and since version 2
_ARRAY_GLOBALS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): __import__("_codecs").encode,
    **{
        (f"numpy.{package}.multiarray", name): getattr(np._core.multiarray, name)
        for package in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}

_GLOBALS = _DATA_GLOBALS | _ARRAY_GLOBALS

# the same for PyTorch's reader, which also needs the classes of dtypes
_KNOWN_TO_TORCH = [
    *((value, f"{module}.{name}") for (module, name), value in _GLOBALS.items()),
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
]
# how that reader names what it refuses to build
_FOREIGN = re.compile(r"GLOBAL (\S+)|but got <class '([^']+)'>")


class DamagedCheckpoint(InputError):
    """A file that is truncated or otherwise damaged."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file, or a directory of Hugging Face's transformers.

    Args:
        path: ``.safetensors``, ``.pkl`` (Detectron2's model zoo) or a file of ``torch.save``, with
            the tensors under "model" or "state_dict", or at the top level. For a sharded checkpoint
            its folder or its index.

    Returns:
        ``model``: tensors by name (arrays of a ``.pkl`` are converted), and the file's other
        entries, such as this project's ``description`` and the ``config`` of a folder.

    Raises:
        InputError: if the file is missing, damaged (:class:`DamagedCheckpoint`), or has objects
            that could run code.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_of(path)
    content = _read_file(path)
    if not isinstance(content, dict):
        raise InputError(
            f"The checkpoint {path} is a {type(content).__name__}, not a dictionary of tensors."
        )
    model = next(
        (content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), {}
    )
    extras = content if model else {}
    model = model or content
    tensors = {name: _as_tensor(x) for name, x in model.items()}
    other = [name for name, x in tensors.items() if not isinstance(x, torch.Tensor)]
    if other or not tensors:
        what = f"{other[0]!r} is a {type(model[other[0]]).__name__}" if other else "it is empty"
        raise InputError(f"The checkpoint {path} is not a dictionary of tensors: {what}.")
    if KEY not in extras:
        tensors = without_wrappers(tensors, str(path))
    config = path.parent / "config.json"
    if path.name.removesuffix(_INDEX) in _HF_FILES and config.is_file():
        extras = {**extras, "config": _read_json(config)}
    return {**extras, "model": tensors}


def _as_tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.asarray(value))
    return value


def _file_of(folder: Path) -> Path:
    names = [*_HF_FILES, *(name + _INDEX for name in _HF_FILES)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"The folder {folder} has none of {', '.join(names)}.")


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"There is no checkpoint file {path}.")
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    return _READERS.get(path.suffix, _read_torch)(path)


def _read_shards(index: Path) -> dict[str, Any]:
    """The tensors of a sharded checkpoint, whose index maps tensors to files."""
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise InputError(f"The index {index} has no weight_map.")
    tensors: dict[str, Any] = {}
    for name in sorted(set(map(str, files.values()))):
        # an index must not reach outside its folder
        if name != Path(name).name or name.endswith(_INDEX):
            raise InputError(
                f"The index {index} names {name!r}, which is not a file of its folder."
            )
        if not (index.parent / name).is_file():
            raise InputError(f"There is no file {index.parent / name}, which {index.name} names.")
        shard = _read_file(index.parent / name)
        if not isinstance(shard, dict):
            raise InputError(f"The file {index.parent / name} is not a dictionary of tensors.")
        tensors |= shard
    missing = [name for name in files if name not in tensors]
    if missing:
        raise InputError(f"The files that {index} names lack {listed(missing)}.")
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damage(path, error) from error
    if not isinstance(content, dict):
        raise InputError(f"The file {path} is a JSON {type(content).__name__}, not an object.")
    return content


def _read_torch(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch.load ignores the checksums that torch.save writes
                damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"the checksum of {damaged} is wrong")
        with torch.serialization.safe_globals(_KNOWN_TO_TORCH):
            return torch.load(path, map_location="cpu", weights_only=True)
    # a damaged file can make the reader fail in many ways
    except Exception as error:
        foreign = isinstance(error, pickle.UnpicklingError) and _FOREIGN.search(str(error))
        if foreign:
            raise _refusal(path, foreign[1] or foreign[2]) from error
        raise _damage(path, error) from error


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            description = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError) as error:
        raise _damage(path, error) from error
    if description is None:
        return tensors
    try:
        return {"model": tensors, KEY: json.loads(description)}
    except ValueError as error:
        raise _damage(path, error) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays, strings and containers, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise PermissionError(f"{module}.{name}")
        return _GLOBALS[module, name]


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except PermissionError as error:
        raise _refusal(path, str(error)) from error
    except Exception as error:
        raise _damage(path, error) from error


_READERS = {".safetensors": _read_safetensors, ".pkl": _read_pickle}


def _refusal(path: Path, name: str) -> InputError:
    return InputError(
        f"The checkpoint {path} is refused: it has more than tensors ({name}), and reading that "
        "could run code. Save only its weights, e.g. as .safetensors."
    )


def _damage(path: Path, error: Exception) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"The checkpoint {path} cannot be read; it is damaged, truncated or not a checkpoint "
        f"({_plain(error)})."
    )


def _plain(error: Exception) -> str:
    """The first line of the error, without colours and PyTorch's advice to trust the file."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split("WeightsUnpickler error:")[-1]
    lines = text.strip().splitlines()
    if not lines or lines[0].startswith("Weights only load failed"):
        return type(error).__name__
    return lines[0][:200]
