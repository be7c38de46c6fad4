"""The line that tells how a training goes."""

import datetime
import logging
import resource
import sys

import torch
from detectron2.utils.events import EventWriter, get_event_storage

_WINDOW = 20


class ProgressPrinter(EventWriter):
    """Logs step, loss, AP so far, speed, waiting for data, memory and the time left.

    Args:
        max_iter: number of steps of the whole training.
        batch_size: images a step, over all workers.
    """

    def __init__(self, max_iter: int, batch_size: int):
        self._logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._batch_size = batch_size

    def write(self) -> None:
        storage = get_event_storage()
        step = storage.iter + 1
        histories = storage.histories()
        if step > self._max_iter or "total_loss" not in histories:
            return

        def recent(name: str) -> float | None:
            # evaluations that just ended are in the storage too: those count by their last value
            return histories[name].median(_WINDOW) if name in histories else None

        parts = [f"step {step}/{self._max_iter}", f"loss {recent('total_loss'):.3f}"]
        terms = [
            f"{x} {recent(f'loss_{x}'):.3f}"
            for x in ("class", "bbox", "giou")
            if f"loss_{x}" in histories
        ]
        if terms:
            parts[-1] += f" (last layer: {', '.join(terms)})"
        if "bbox/AP" in histories:
            parts.append(f"AP {histories['bbox/AP'].latest():.2f}")
        if "lr" in histories:
            parts.append(f"lr {histories['lr'].latest():.3g}")
        seconds = recent("time")
        if seconds:
            parts.append(f"{self._batch_size / seconds:.3g} images/s")
            parts.append(f"data wait {100 * min(1.0, recent('data_time') / seconds):.0f} %")
        parts.append(f"{_most_memory() / 2**20:.0f} MB")
        if seconds:
            left = seconds * (self._max_iter - step)
            parts.append(f"ETA {datetime.timedelta(seconds=int(left))}")
        self._logger.info(" | ".join(parts))


def _most_memory() -> int:
    """Bytes: the most that tensors have taken on the GPU, or this process on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, others kilobytes
    return most if sys.platform == "darwin" else most * 1024
