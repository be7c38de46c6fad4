"""Detectron2 event writers for metrics: JSON lines, TensorBoard, CSV."""

import csv
import io
import json
import os
from collections import defaultdict
from pathlib import Path

from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import (
    EventWriter,
    TensorboardXWriter,
    get_event_storage,
)

from dab_detr.files import atomic_write_text, read_json_lines

_COLUMNS = ("iteration", "name", "value")


class ResumableWriter(EventWriter):
    """A writer whose file is continued by a resumed training."""

    def resume(self, after: int) -> None:
        """Remove what was written after this iteration: it will be written again."""
        raise NotImplementedError


class Writers(PeriodicWriter):
    """A ``PeriodicWriter`` that gives a resumed training the same rows as one without a stop.

    Rows of steps that are repeated are removed. The row of the step before them is written again:
    it may be missing, or lack an evaluation that was only run after the resume. Rows of earlier
    steps that are not due yet are written at the next log. Their metrics are in the checkpoint
    (:class:`MetricHistory`).
    """

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if not start:
            return
        was_due = self.trainer.logged == start - 1
        for writer in self._writers:
            if isinstance(writer, ResumableWriter):
                writer.resume(start - 2 if was_due else self.trainer.logged)
                if was_due:
                    writer.write()


class _FileWriter(ResumableWriter):
    """A writer that appends the metrics after its last iteration to a text file.

    Args:
        path: the file to append to; its folder is made.
        window_size: number of steps over which the median of noisy metrics is taken.
    """

    def __init__(self, path: str | os.PathLike, window_size: int = 20):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._window_size = window_size
        self._last = -1

    def resume(self, after: int) -> None:
        if self._path.exists():
            kept, self._last = self._kept(after)
            atomic_write_text(self._path, kept)

    def _kept(self, after: int) -> tuple[str, int]:
        """The text of the file up to an iteration, and the last iteration in it (-1: none)."""
        raise NotImplementedError

    def _new(self) -> list[tuple[int, str, float]]:
        """(iteration, name, value) of the metrics that are not in the file yet."""
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        return sorted((i, name, value) for name, (value, i) in latest.items() if i > self._last)


class MetricsWriter(_FileWriter):
    """Appends a JSON object per line for each iteration with new values, in order."""

    def _kept(self, after: int) -> tuple[str, int]:
        rows = [x for x in read_json_lines(self._path) if x.get("iteration", -1) <= after]
        last = max((row.get("iteration", -1) for row in rows), default=-1)
        return "".join(f"{_json(row)}\n" for row in rows), last

    def write(self) -> None:
        rows: dict[int, dict] = defaultdict(dict)
        for iteration, name, value in self._new():
            rows[iteration][name] = value
        with open(self._path, "a") as file:
            for iteration, row in rows.items():
                file.write(f"{_json({**row, 'iteration': iteration})}\n")
                self._last = iteration
            file.flush()
            os.fsync(file.fileno())


def _json(row: dict) -> str:
    return json.dumps(row, sort_keys=True)


class TensorBoardWriter(TensorboardXWriter, ResumableWriter):
    """``TensorboardXWriter`` whose curves are continued by a resumed training."""

    def __init__(self, folder: str | os.PathLike):
        super().__init__(os.fspath(folder))

    def resume(self, after: int) -> None:
        self._writer_args["purge_step"] = after + 1
        self._last_write = after


class CSVWriter(_FileWriter):
    """One row per metric and step, ``iteration,name,value``: for spreadsheets and data frames."""

    def _kept(self, after: int) -> tuple[str, int]:
        with open(self._path, newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(_COLUMNS)]
        rows = [row for row in rows if row[0].isdigit() and int(row[0]) <= after]
        kept = io.StringIO(newline="")
        csv.writer(kept).writerows([_COLUMNS, *rows])
        return kept.getvalue(), max((int(row[0]) for row in rows), default=-1)

    def write(self) -> None:
        is_new = not self._path.exists()
        rows = self._new()
        with open(self._path, "a", newline="") as file:
            table = csv.writer(file)
            if is_new:
                table.writerow(_COLUMNS)
            table.writerows(rows)
        if rows:
            self._last = rows[-1][0]
