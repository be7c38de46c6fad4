"""Models of the Hugging Face hub, by addresses ``hf://OWNER/REPO`` or ``hf://OWNER/REPO@REVISION``.

Only ``model.safetensors`` and ``config.json`` are read: no code, and no pickled files.
"""

import re
import warnings
from pathlib import Path
from typing import Any

from dab_detr import __version__
from dab_detr.checkpoint.downloads import DownloadError, check_digest, is_full, no_room
from dab_detr.errors import InputError, one_line

PREFIX = "hf://"
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_ADDRESS = re.compile(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def folder_of(address: str, digest: str | None = None) -> str:
    """The folder of a model in the hub's cache, which is downloaded if it is not there.

    Args:
        digest: known SHA-256 of the weights.

    Raises:
        InputError: for another form of address, or without the package huggingface_hub.
        DownloadError: if it cannot be downloaded.
    """
    repo, revision = _parse(address)
    try:
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise InputError(
            f"{address} needs the package huggingface_hub: pip install 'dab_detr[hub]'."
        ) from error
    try:
        with warnings.catch_warnings():
            # the client only warns, and then fills the disk
            warnings.filterwarnings("error", "Not enough free disk space", UserWarning)
            return _download(address, repo, revision, digest)
    except errors.RepositoryNotFoundError as error:
        reason = f"{constants.ENDPOINT} has no repository {repo} that you can read"
        raise DownloadError(reason) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo} has no revision {revision}") from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(
            "it is not in the cache, and HF_HUB_OFFLINE is set"
            if constants.HF_HUB_OFFLINE
            else f"{constants.ENDPOINT} cannot be reached, and it is not in the cache"
        ) from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{repo} has no {_WEIGHTS}; only this format is read") from error
    except UserWarning as error:
        raise no_room(Path(constants.HF_HUB_CACHE)) from error
    except DownloadError:
        raise
    # the client's errors depend on its version and on its HTTP library
    except Exception as error:
        if is_full(error):
            raise no_room(Path(constants.HF_HUB_CACHE)) from error
        raise DownloadError(one_line(error)) from error


def _download(address: str, repo: str, revision: str | None, digest: str | None) -> str:
    from huggingface_hub import constants, errors, hf_hub_download

    arguments: dict[str, Any] = {
        "cache_dir": constants.HF_HUB_CACHE,
        "library_name": "dab_detr",
        "library_version": __version__,
    }
    known = _cached_weights(repo)
    weights = Path(hf_hub_download(repo, _WEIGHTS, revision=revision, **arguments))
    is_new = weights not in known
    if is_new:
        # the hub names large files by their SHA-256
        stated = weights.resolve().name
        check_digest(
            weights.resolve(), address, digest, stated if _SHA256.fullmatch(stated) else None
        )
    try:
        # of the same revision
        hf_hub_download(repo, _CONFIG, revision=weights.parent.name, **arguments)
    except errors.LocalEntryNotFoundError:
        # known files need not have one, and perhaps nobody can be asked
        if is_new:
            raise
    except errors.EntryNotFoundError:
        # this project's own files need none
        pass
    return str(weights.parent)


def is_cached(address: str) -> bool:
    """Whether some revision of a model is in the cache."""
    return any(_cached_weights(_parse(address)[0]))


def _cached_weights(repo: str) -> list[Path]:
    try:
        from huggingface_hub import constants
    except ImportError:
        return []
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    return [path for path in folder.glob(f"snapshots/*/{_WEIGHTS}") if path.is_file()]


def _parse(address: str) -> tuple[str, str | None]:
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise InputError(
            f"{address!r} is not of the form hf://OWNER/REPO or hf://OWNER/REPO@REVISION."
        )
    return match[1], match[2]
