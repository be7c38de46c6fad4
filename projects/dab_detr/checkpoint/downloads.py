"""Downloads: a file lands in the cache whole or not at all, and an interrupted one is continued."""

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from iopath.common.file_io import HTTPURLHandler, file_lock, get_cache_dir
from tqdm import tqdm

from dab_detr import __version__
from dab_detr.files import UNFINISHED

_TIMEOUT = 30
_CHUNK = 1 << 20
# what writing to a full disk, or over a quota, raises
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# its files have no folder of their host in the caches of Detectron2's own handler
_DETECTRON2_HOST = "dl.fbaipublicfiles.com"


class DownloadError(Exception):
    """A file that cannot be downloaded; the message is the reason."""


def no_room(folder: Path) -> DownloadError:
    """The error for a cache without space; its place can be chosen by a variable."""
    return DownloadError(
        f"there is not enough space in {folder}: free some, or choose another folder with HF_HOME "
        "or FVCORE_CACHE"
    )


def is_full(error: BaseException) -> bool:
    """Whether something could not be written as there is no space."""
    return isinstance(error, OSError) and error.errno in _FULL


def check_digest(file: Path, source: str, known: str | None, stated: str | None = None) -> None:
    """Compare the SHA-256 of a new file; it is printed if this project knows none.

    Args:
        source: its address. known: to this project. stated: by the server.

    Raises:
        DownloadError: if they differ; the file is removed.
    """
    hashed = hashlib.sha256()
    with open(file, "rb") as content:
        while chunk := content.read(_CHUNK):
            hashed.update(chunk)
    digest = hashed.hexdigest()
    for expected in (known, stated):
        if expected not in (None, digest):
            file.unlink()
            raise DownloadError(f"its SHA-256 is {digest} instead of {expected}")
    if known is None:
        print(f"The SHA-256 of {source} is {digest}.", file=sys.stderr)


def cached_file(url: str, cache_dir: str | None = None) -> Path:
    """Where the file of an address is, or will be, in the cache."""
    address = urlparse(url)
    host = "" if address.netloc == _DETECTRON2_HOST else address.netloc
    return Path(get_cache_dir(cache_dir), host, address.path.lstrip("/"))


class ResumingHandler(HTTPURLHandler):
    """Detectron2's handler of addresses, with downloads that can be continued.

    Args:
        digests: known SHA-256 of files, by address.
    """

    def __init__(self, digests: dict[str, str | None]):
        super().__init__()
        self._digests = digests

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://"]

    def _get_local_path(
        self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any
    ) -> str:
        self._check_kwargs(kwargs)
        target = cached_file(path, cache_dir)
        if force or not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            # of several processes, one downloads
            with file_lock(str(target)):
                if force or not target.is_file():
                    _download(path, target, self._digests.get(path))
        return str(target)


def _download(url: str, target: Path, digest: str | None) -> None:
    part = target.with_name(f".{target.name}{UNFINISHED}")
    version = target.with_name(f".{target.name}.version")
    while True:
        before = _size(part)
        try:
            _transfer(url, part, version)
            break
        except HTTPError as error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                # the part is as long as the file; a program was stopped before it was renamed
                part.unlink()
                continue
            raise DownloadError(
                f"{urlparse(url).netloc} answers {error.code}, {error.reason}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if is_full(error):
                raise no_room(target.parent) from error
            # continue as long as each attempt brings something
            if _size(part) <= before:
                reason = getattr(error, "reason", error)
                raise DownloadError(
                    f"the connection to {urlparse(url).netloc} fails: "
                    f"{reason or type(error).__name__}"
                ) from error
    try:
        check_digest(part, url, digest)
        os.replace(part, target)
    finally:
        version.unlink(missing_ok=True)


def _transfer(url: str, part: Path, version: Path) -> None:
    """Download into ``part``, from its end on if it is of the server's current version."""
    headers = {"User-Agent": f"dab_detr/{__version__}", "Accept-Encoding": "identity"}
    have = 0
    with contextlib.suppress(OSError):
        tag = version.read_text()
        if tag and (have := _size(part)):
            headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    with urlopen(Request(url, headers=headers), timeout=_TIMEOUT) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise ConnectionError("it sends another part of the file than it was asked for")
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        if total is not None and shutil.disk_usage(part.parent).free < total - have:
            raise OSError(errno.ENOSPC, "too large")
        with open(part, "ab" if have else "wb") as file:
            if not have:
                # after the old content has gone
                version.write_text(_version_of(response))
            with tqdm(
                initial=have,
                total=total,
                unit="B",
                unit_scale=True,
                desc=part.name[1 : -len(UNFINISHED)],
                disable=None,
            ) as progress:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise ConnectionError(f"it ended after {_size(part)} of {total} bytes")


def _version_of(response: http.client.HTTPResponse) -> str:
    """What a server compares before it continues; "" if it names no version of the file."""
    tag = response.headers.get("ETag", "")
    # a weak tag does not stand for the same bytes
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
