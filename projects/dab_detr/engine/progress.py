"""The progress bar and the log line of a training."""

import datetime
import logging
import resource
import sys
from itertools import takewhile

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from dab_detr.console import DETAIL, bar

# number of steps over which the remaining time is estimated
_WINDOW = 20


class ProgressBar(HookBase):
    """On a terminal, a live line: the step and the essentials of :class:`ProgressPrinter`."""

    def __init__(self):
        self._bar = bar(disable=True)

    def before_train(self) -> None:
        self._bar = bar(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            bar_format="step {n}/{total} {bar:12} {desc}",
        )

    def after_step(self) -> None:
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()

    @property
    def is_shown(self) -> bool:
        return not self._bar.disable

    def show(self, text: str) -> None:
        self._bar.set_description_str(text)


class ProgressPrinter(EventWriter):
    """Logs step, loss, AP so far, speed, waiting for data, memory and the remaining time.

    Loss, speed and waiting are means over the steps since the last line.

    Args:
        max_iter: total number of steps of the training.
        batch_size: images per step, over all processes.
        start_iter: the first iteration of this run.
        bar: shows the essentials; the line then only goes to log.txt.
    """

    def __init__(
        self,
        max_iter: int,
        batch_size: int,
        start_iter: int = 0,
        bar: ProgressBar | None = None,
    ):
        self._bar = bar
        self._logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._batch_size = batch_size
        self._last = start_iter - 1

    def write(self) -> None:
        storage = get_event_storage()
        latest = storage.latest()
        # also called at the end, without a new step
        if latest.get("total_loss", (0.0, -1))[1] != storage.iter or storage.iter == self._last:
            return
        step = storage.iter + 1
        parts = [f"step {step}/{self._max_iter}", f"loss {latest['total_loss'][0]:.3f}"]
        terms = [
            f"{x} {latest[f'loss_{x}'][0]:.3f}"
            for x in ("class", "bbox", "giou")
            if f"loss_{x}" in latest
        ]
        if terms:
            parts[-1] += f" (last layer: {', '.join(terms)})"
        precision = {
            # "bbox/AP", or with several data sets "bbox/NAME/AP"
            name.removeprefix("bbox").removesuffix("AP").strip("/"): value
            for name, (value, _) in latest.items()
            if name.startswith("bbox/") and name.endswith("/AP")
        }
        if precision:
            values = (f"{name} {value:.2f}".strip() for name, value in precision.items())
            parts.append(f"AP {', '.join(values)}")
        if "lr" in latest:
            parts.append(f"lr {latest['lr'][0]:.3g}")
        times = storage.histories()["time"].values() if "time" in latest else []
        times = [x for x, _ in takewhile(lambda entry: entry[1] > self._last, reversed(times))]
        self._last = storage.iter
        if times:
            seconds = sum(times) / len(times)
            parts.append(f"{self._batch_size / seconds:.3g} images/s")
            parts.append(f"data wait {100 * min(1.0, latest['data_time'][0] / seconds):.0f} %")
        parts.append(f"{_most_memory() / 2**20:.0f} MB")
        if times:
            left = storage.histories()["time"].median(_WINDOW) * (self._max_iter - step)
            parts.append(f"ETA {datetime.timedelta(seconds=int(left))}")
        is_shown = self._bar is not None and self._bar.is_shown
        self._logger.info(" | ".join(parts), extra=DETAIL if is_shown else None)
        if is_shown:
            words = ("loss", "AP", "images/s", "ETA")
            shown = [x.partition(" (")[0] for x in parts if any(word in x for word in words)]
            self._bar.show(" | ".join(shown))


def _most_memory() -> int:
    """Peak bytes of tensors on the GPU, or of this process on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, others kilobytes
    return most if sys.platform == "darwin" else most * 1024
