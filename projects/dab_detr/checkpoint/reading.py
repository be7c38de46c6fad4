"""Reading checkpoint files of several kinds without running what is in them."""

import argparse
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dab_detr.checkpoint.description import KEY
from dab_detr.errors import InputError

_HF_FILES = ("model.safetensors", "pytorch_model.bin")
# what a pickle of arrays needs, in numpy's names before and after version 2
_ARRAY_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): __import__("_codecs").encode,
    **{
        (f"numpy.{package}.multiarray", name): getattr(np._core.multiarray, name)
        for package in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}


class DamagedCheckpoint(InputError):
    """A file that is cut short or otherwise not what was once written."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file, or a directory of Hugging Face's transformers.

    Args:
        path: ``.safetensors``, ``.pkl`` (Detectron2's model zoo) or anything that ``torch.save``
            wrote: with the tensors under "model" or "state_dict", or alone.

    Returns:
        ``model``: tensors by name (arrays of a ``.pkl`` become such), and what else the file has,
        such as this project's ``description``.

    Raises:
        InputError: if the file is missing, damaged (:class:`DamagedCheckpoint`), or holds objects
            that could run code.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _HF_FILES if (path / name).is_file()]
        if not found:
            raise InputError(f"The folder {path} has none of {', '.join(_HF_FILES)}.")
        path = found[0]
    if not path.is_file():
        raise InputError(f"There is no checkpoint file {path}.")
    content = _READERS.get(path.suffix, _read_torch)(path)
    if not isinstance(content, dict):
        raise InputError(f"The checkpoint {path} holds a {type(content).__name__}, not tensors.")
    model = next(
        (content[k] for k in ("model", "state_dict") if isinstance(content.get(k), dict)), {}
    )
    extras = content if model else {}
    model = model or content
    tensors = {
        name: torch.from_numpy(x) if isinstance(x, np.ndarray) and x.dtype.kind in "fiub" else x
        for name, x in model.items()
    }
    other = [name for name, x in tensors.items() if not isinstance(x, torch.Tensor)]
    if other or not tensors:
        what = f"{other[0]!r} is a {type(model[other[0]]).__name__}" if other else "it is empty"
        raise InputError(f"The checkpoint {path} does not hold tensors by name: {what}.")
    return {**extras, "model": tensors}


def _read_torch(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch.load does not look at the checksums that torch.save writes
                damaged = archive.testzip()
                if damaged is not None:
                    raise ValueError(f"the checksum of {damaged} is wrong")
        # the published checkpoints keep their command line, a Namespace, beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # a damaged file can make the reader stumble in any way
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise _refusal(path, error) from error
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
    """Builds arrays, strings and containers, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_GLOBALS:
            raise PermissionError(f"{module}.{name}")
        return _ARRAY_GLOBALS[module, name]


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except PermissionError as error:
        raise _refusal(path, error) from error
    except Exception as error:
        raise _damage(path, error) from error


_READERS = {".safetensors": _read_safetensors, ".pkl": _read_pickle}


def _refusal(path: Path, error: Exception) -> InputError:
    return InputError(
        f"The checkpoint {path} is refused: it holds more than tensors, and reading that could run "
        f"code ({_first_line(error)}). Save its weights alone, e.g. as .safetensors."
    )


def _damage(path: Path, error: Exception) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"The checkpoint {path} cannot be read; it is damaged, cut short or no checkpoint "
        f"({_first_line(error)})."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
