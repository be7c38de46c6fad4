"""The detections of a run on many files, by which it continues after an interruption."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dab_detr.errors import InputError
from dab_detr.files import atomic_write_text, cannot_be_written, read_json_lines
from dab_detr.inference.results import category_ids

LOG_FILE = "predictions.jsonl"


class PredictionLog:
    """``predictions.jsonl``: a line about the run, then a line for each finished file.

    The first line has the ``settings``, and what the run may write: ``outputs``, the name of the
    picture or video by file, and ``claimed``, all paths. The others have ``file``, ``output``,
    ``is_video``, ``width`` and ``height`` in pixels, and ``frames``: for each frame of a video, or
    for the image, a list of COCO records without ``image_id``.

    Args:
        folder: nothing is written to it before :meth:`start`.
        settings: of this run; they have to be the same when it is continued.
        resume: continue the run whose log is there, if there is one.
        replace: replace the log of an earlier run.

    Raises:
        InputError: if there is a log and it is not to be continued or replaced, or is of a run with
            other settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        replace: bool = False,
    ):
        self.path = folder / LOG_FILE
        lines = read_json_lines(self.path) if self.path.exists() and not replace else []
        if lines and not resume:
            raise InputError(
                f"{folder} has predictions of an earlier run: continue it with --resume, replace "
                "them with --force, or choose another folder."
            )
        self._settings = json.loads(json.dumps(settings))
        first, *records = lines or [{"settings": self._settings}]
        before = first.get("settings") or {}
        if other := [name for name, x in self._settings.items() if before.get(name) != x]:
            raise InputError(
                f"The run in {folder} was started with another {' and '.join(other)}: continue it "
                "with the same, start again with --force, or choose another folder."
            )
        self.outputs: dict[str, str] = first.get("outputs", {})
        self._claimed = set(first.get("claimed", ()))
        self._records = {record["file"]: record for record in records if "frames" in record}

    def is_own(self, path: Path) -> bool:
        """Whether the run may have written this file before it was interrupted."""
        return os.path.abspath(path) in self._claimed

    def is_finished(self, file: str) -> bool:
        return file in self._records

    def start(self, outputs: Mapping[str, str], targets: Iterable[Path]) -> None:
        """Write what is known, without lines that a process left incomplete when it was killed.

        Args:
            outputs: the name of the picture or video by file.
            targets: all files that this run writes; they do not exist, or are to be replaced.

        Raises:
            InputError: if the log cannot be written.
        """
        self._claimed |= {os.path.abspath(path) for path in targets}
        first = {
            "settings": self._settings,
            "outputs": {**self.outputs, **outputs},
            "claimed": sorted(self._claimed),
        }
        content = "".join(f"{json.dumps(line)}\n" for line in (first, *self._records.values()))
        atomic_write_text(self.path, content)

    def append(self, record: dict[str, Any]) -> None:
        """Add a finished file."""
        try:
            with open(self.path, "ab") as file:
                file.write(f"{json.dumps(record)}\n".encode())
        except OSError as error:
            raise cannot_be_written(self.path, error) from error
        self._records[record["file"]] = record

    def count(self, files: Sequence[str]) -> int:
        """The number of detections in these files, as far as they are finished."""
        records = [self._records[file] for file in files if file in self._records]
        return sum(len(frame) for record in records for frame in record["frames"])

    def write_coco(
        self, path: str | os.PathLike, files: Sequence[str], class_names: Sequence[str]
    ) -> None:
        """Write finished files as one JSON file in COCO's format, atomically.

        Args:
            files: in this order; those that are not finished are left out.
            class_names: of all classes of the model.
        """
        images, annotations = [], []
        for record in (self._records[file] for file in files if file in self._records):
            for number, frame in enumerate(record["frames"]):
                image = {"id": len(images) + 1, "file_name": record["file"]}
                image |= {"width": record["width"], "height": record["height"]}
                if record["is_video"]:
                    image["frame"] = number
                images.append(image)
                for detection in frame:
                    annotation = {"id": len(annotations) + 1, "image_id": image["id"], **detection}
                    area = detection["bbox"][2] * detection["bbox"][3]
                    annotations.append({**annotation, "area": area, "iscrowd": 0})
        categories = [
            {"id": number, "name": name}
            for number, name in zip(category_ids(class_names), class_names)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        atomic_write_text(path, json.dumps(content))
