"""The images and videos that a command line names, and the files that are written for them."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dab_detr.errors import InputError
from dab_detr.visualization.predictions import unused_name

# of the files of a folder; a file given by its name may have any suffix
_IMAGES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif",
    ".tiff", ".webp"
}  # fmt: skip
_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}


class Source(NamedTuple):
    """One input.

    Attributes:
        file: path or address of an image or a video; of a camera its number.
        kind: "image", "video" or "camera".
    """

    file: str
    kind: str

    @property
    def is_image(self) -> bool:
        return self.kind == "image"


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The images, videos and cameras of a command line, each once.

    Args:
        inputs: files, folders (their images and videos, without sub-folders), patterns such as
            ``photos/**/*.jpg``, addresses, and numbers of cameras.

    Raises:
        InputError: if there is no such file, or a folder or pattern has none.
    """
    sources: dict[str, Source] = {}
    for given in inputs:
        for source in _sources(given):
            key = source.file if "://" in source.file else os.path.abspath(source.file)
            sources.setdefault(f"{source.kind} {key}", source)
    return list(sources.values())


def output_names(sources: Sequence[Source], known: Mapping[str, str]) -> dict[str, str]:
    """The name of the picture or video to write for each source, all different.

    Args:
        known: names by source's file of the run that is continued.

    Returns:
        By source's file: "NAME.jpg" or "NAME.mp4"; if a name occurs again, "NAME-2.jpg" and so on.
    """
    used = {os.path.splitext(name)[0] for name in known.values()}
    names = dict(known)
    for file, kind in sources:
        if file not in names:
            stem = os.path.splitext(os.path.basename(file))[0] or "image"
            stem = unused_name(f"camera{file}" if kind == "camera" else stem, used)
            used.add(stem)
            names[file] = f"{stem}.jpg" if kind == "image" else f"{stem}.mp4"
    return names


def _sources(given: str) -> Iterator[Source]:
    if os.path.isdir(given):
        names = sorted(name for name in os.listdir(given) if not name.startswith("."))
        files = [os.path.join(given, name) for name in names if _suffix(name) in _IMAGES | _VIDEOS]
        if not files:
            raise InputError(f"The folder {given} has no images and no videos.")
    elif os.path.exists(given) or "://" in given:
        files = [given]
    elif given.isdecimal():
        yield Source(given, "camera")
        return
    elif glob.has_magic(given):
        files = sorted(file for file in glob.glob(given, recursive=True) if os.path.isfile(file))
        if not files:
            raise InputError(f"No file matches {given}.")
    else:
        raise InputError(f"There is no file or folder {given} (--input).")
    for file in files:
        yield Source(file, "video" if _suffix(file) in _VIDEOS else "image")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
