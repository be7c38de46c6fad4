"""Where metrics go, as Detectron2's event writers: JSON lines, TensorBoard, CSV."""

import csv
import json
import os
from pathlib import Path

from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import (
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from dab_detr.files import write_whole


class Writers(PeriodicWriter):
    """``PeriodicWriter``, which begins a resumed training with the step before it.

    That step may not have been written when the training was killed, or without the evaluation
    that is only now made up for; its metrics are in the checkpoint (:class:`History`).
    """

    def before_train(self) -> None:
        if self.trainer.start_iter:
            for writer in self._writers:
                if isinstance(writer, MetricsWriter | TensorBoardWriter):
                    writer.write()


class MetricsWriter(JSONWriter):
    """``JSONWriter``, whose file goes on where a resumed training does.

    Args:
        path: records of steps that are written again are removed from it.
        start_iter: the first iteration that is to come; the one before it is written again.
    """

    def __init__(self, path: str | os.PathLike, start_iter: int):
        if start_iter and os.path.exists(path):
            lines = Path(path).read_text().splitlines()
            kept = "".join(line + "\n" for line in lines if _remains(line, start_iter))
            write_whole(path, lambda file: file.write(kept.encode()))
        super().__init__(os.fspath(path))
        self._last_write = start_iter - 2


def _remains(line: str, start_iter: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        # the process was killed while it wrote this
        return False
    iteration = record.get("iteration", -1)
    # the evaluation at the end of a training is dated one step later than its last loss
    at_end = iteration == start_iter and "total_loss" not in record
    return iteration < start_iter - 1 or at_end


class TensorBoardWriter(TensorboardXWriter):
    """``TensorboardXWriter``, whose curves go on where a resumed training does."""

    def __init__(self, folder: str | os.PathLike, start_iter: int):
        super().__init__(os.fspath(folder), purge_step=start_iter - 1 if start_iter else None)
        self._last_write = start_iter - 2


class CSVWriter(EventWriter):
    """One row a metric and step, ``iteration,name,value``: for spreadsheets and data frames.

    Args:
        path: is appended to.
        window_size: noisy metrics are medians over so many steps.
    """

    def __init__(self, path: str | os.PathLike, window_size: int = 20):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        is_new = not os.path.exists(path)
        self._file = open(path, "a", newline="")
        self._rows = csv.writer(self._file)
        self._window_size = window_size
        self._last: dict[str, int] = {}
        if is_new:
            self._rows.writerow(("iteration", "name", "value"))

    def write(self) -> None:
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in sorted(latest.items()):
            if self._last.get(name, -1) < iteration:
                self._rows.writerow((iteration, name, value))
                self._last[name] = iteration
        self._file.flush()

    def close(self) -> None:
        self._file.close()
