"""Where metrics go, as Detectron2's event writers: JSON lines, TensorBoard, CSV."""

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

from dab_detr.files import read_json_lines, write_whole

_COLUMNS = ("iteration", "name", "value")


class ResumableWriter(EventWriter):
    """A writer whose file goes on where a resumed training does."""

    def resume(self, after: int) -> None:
        """Forget what was written of the iterations after this one: they are written again."""
        raise NotImplementedError


class Writers(PeriodicWriter):
    """``PeriodicWriter``, after which a resumed training has the rows of one that never stopped.

    Rows of the steps that are taken again go. The row of the step before them may not have been
    written, or without the evaluation that is only now made up for: it is written again. What was
    not yet due of earlier steps is so at the next log. Their metrics are in the checkpoint
    (:class:`History`).
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


class MetricsWriter(ResumableWriter):
    """Appends a JSON object for each iteration with something new, in their order.

    Args:
        path: is appended to.
        window_size: noisy metrics are medians over so many steps.
    """

    def __init__(self, path: str | os.PathLike, window_size: int = 20):
        self._path = Path(path)
        self._window_size = window_size
        self._last = -1

    def resume(self, after: int) -> None:
        if self._path.exists():
            rows = [x for x in read_json_lines(self._path) if x.get("iteration", -1) <= after]
            self._last = max((row.get("iteration", -1) for row in rows), default=-1)
            kept = "".join(f"{_json(row)}\n" for row in rows)
            write_whole(self._path, lambda file: file.write(kept.encode()))

    def write(self) -> None:
        rows: dict[int, dict] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last:
                rows[iteration][name] = value
        with open(self._path, "a") as file:
            for iteration in sorted(rows):
                file.write(f"{_json({**rows[iteration], 'iteration': iteration})}\n")
                self._last = iteration
            file.flush()
            os.fsync(file.fileno())


def _json(row: dict) -> str:
    return json.dumps(row, sort_keys=True)


class TensorBoardWriter(TensorboardXWriter, ResumableWriter):
    """``TensorboardXWriter``, whose curves go on where a resumed training does."""

    def __init__(self, folder: str | os.PathLike):
        super().__init__(os.fspath(folder))

    def resume(self, after: int) -> None:
        self._writer_args["purge_step"] = after + 1
        self._last_write = after


class CSVWriter(ResumableWriter):
    """One row a metric and step, ``iteration,name,value``: for spreadsheets and data frames.

    Args:
        path: is appended to.
        window_size: noisy metrics are medians over so many steps.
    """

    def __init__(self, path: str | os.PathLike, window_size: int = 20):
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._window_size = window_size
        self._last = -1

    def resume(self, after: int) -> None:
        if self._path.exists():
            with open(self._path, newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == len(_COLUMNS)]
            rows = [row for row in rows if row[0].isdigit() and int(row[0]) <= after]
            self._last = max((int(row[0]) for row in rows), default=-1)
            kept = io.StringIO(newline="")
            csv.writer(kept).writerows([_COLUMNS, *rows])
            write_whole(self._path, lambda file: file.write(kept.getvalue().encode()))

    def write(self) -> None:
        is_new = not self._path.exists()
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        rows = sorted((i, name, v) for name, (v, i) in latest.items() if i > self._last)
        with open(self._path, "a", newline="") as file:
            table = csv.writer(file)
            if is_new:
                table.writerow(_COLUMNS)
            table.writerows(rows)
        if rows:
            self._last = rows[-1][0]
