"""A training step: gradient accumulation, mixed precision on any device, gradient clipping."""

import contextlib
import time
from collections.abc import Iterable

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dab_detr.data.stream import seed_generators
from dab_detr.engine.launching.interruption import Interruption, deciding_signal
from dab_detr.engine.means import StepMeans
from dab_detr.engine.nonfinite import NonFiniteSteps

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# The gradient scaler starts at 65536 and halves its scale at each overflow, normal at first.
# If it overflows below this scale, the gradients themselves are wrong.
_LEAST_SCALE = 1.0
# class names of hooks in checkpoints of earlier versions -> current names
_FORMER_HOOKS = {"History": "MetricHistory", "MovingAverage": "EMAHook"}


class Trainer(SimpleTrainer):
    """Detectron2's trainer with gradient accumulation, autocast on any device and clipping.

    A step takes ``accumulate`` batches of the loader. Its gradient is that of all of them, over all
    processes: each loss is divided by their total number of objects.

    Args:
        model: called with a batch and ``num_boxes``, the divisor of the losses; see
            :meth:`dab_detr.modeling.meta_arch.DABDETR.forward`.
        data_loader, optimizer: as in :class:`detectron2.engine.SimpleTrainer`.
        device: of the model.
        accumulate: micro-batches per step.
        amp_dtype: None for float32; float16 (with a gradient scaler) or bfloat16.
        max_grad_norm: maximum L2 norm of the gradient of all parameters together; 0 switches
            clipping off.
        log_period: number of steps between logs of the means of losses, gradient norm and waiting
            for data; also logged after the last step.
        seed: not negative; before each step the random generators are seeded with it, the step and
            the rank, so that a resumed training draws the same numbers.
        nonfinite: handles losses and gradients that are not finite; None: they are an error. A
            skipped step does not change the model, buffers included.
        interruption: checked for a signal at each step; see :attr:`stop_signal`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        accumulate: int = 1,
        amp_dtype: torch.dtype | None = None,
        max_grad_norm: float = 0.0,
        log_period: int = 1,
        seed: int = 0,
        nonfinite: NonFiniteSteps | None = None,
        interruption: Interruption | None = None,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period=log_period)
        self.device_type = torch.device(device).type
        self.accumulate = accumulate
        self.amp_dtype = amp_dtype
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.nonfinite = nonfinite or NonFiniteSteps()
        self.interruption = interruption or Interruption()
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype is torch.float16
        )
        self.means = StepMeans()
        # the iteration of the last log
        self.logged = -1
        # set when the training starts
        self.max_iter = 0
        self._data_times: list[float] = []
        self._workers = _Workers()
        self._stop_signal = 0

    @property
    def stop_signal(self) -> int | None:
        """The signal that stops all processes after this step; the same on all of them."""
        alone = self._workers.count == 1
        return (self.interruption.stop_signal if alone else self._stop_signal) or None

    def run_step(self) -> None:
        """Forward and backward for each micro-batch, then one clipping and one update."""
        start = time.perf_counter()
        batches = [next(self._data_loader_iter) for _ in range(self.accumulate)]
        self._data_times.append(time.perf_counter() - start)

        # torch.manual_seed also seeds the GPUs' generators
        torch.manual_seed(seed_generators(self.seed, self.iter, comm.get_rank(), 1))
        boxes = sum(len(image["instances"]) for batch in batches for image in batch)
        num_boxes, self._stop_signal = self._workers.exchange(
            boxes, self.interruption.stop_signal or 0
        )
        self.optimizer.zero_grad()
        # the forward pass updates the statistics of batch norms, also in a step that is skipped
        buffers = list(self.model.buffers()) if self.nonfinite.limit else []
        before = [buffer.clone() for buffer in buffers]
        losses: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            for name, loss in self._backward(batch, num_boxes, index == len(batches) - 1).items():
                losses[name] = losses.get(name, 0.0) + loss
        self.grad_scaler.unscale_(self.optimizer)
        # with an infinite maximum the norm is only measured
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or float("inf"))
        self.after_backward()
        if self._is_finite(losses, norm):
            self.means.add({**losses, "grad_norm": norm})
            self.grad_scaler.step(self.optimizer)
        else:
            self.nonfinite.note(self.iter + 1, losses, norm, batches)
            for buffer, value in zip(buffers, before):
                buffer.copy_(value)
        self.grad_scaler.update()
        if (self.iter + 1) % self.gather_metric_period == 0 or self.iter + 1 == self.max_iter:
            self._log()

    def _log(self) -> None:
        """Write the means since the last log to the event storage."""
        # all processes wait for the slowest one
        waited = comm.gather(sum(self._data_times) / len(self._data_times))
        self._data_times = []
        self.logged = self.iter
        means = self.means.read()
        if not comm.is_main_process():
            return
        metrics = {"data_time": max(waited), **means}
        losses = [value for name, value in means.items() if name != "grad_norm"]
        if losses:
            metrics["total_loss"] = sum(losses)
        # writers need no smoothing, as these are means
        get_event_storage().put_scalars(smoothing_hint=False, cur_iter=self.iter, **metrics)

    def _backward(self, batch: list[dict], num_boxes: float, is_last: bool) -> dict[str, Tensor]:
        """Accumulate a micro-batch's gradient; returns its losses."""
        parallel = isinstance(self.model, DistributedDataParallel)
        # processes exchange gradients once per step
        with self.model.no_sync() if parallel and not is_last else contextlib.nullcontext():
            with torch.autocast(
                self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
            ):
                losses = self.model(batch, num_boxes=num_boxes)
                total = sum(losses.values())
            self.grad_scaler.scale(total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _is_finite(self, losses: dict[str, Tensor], norm: Tensor) -> bool:
        """Whether to update. Overflows of a scaled gradient are normal."""
        total = sum(losses.values())
        if self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() >= _LEAST_SCALE:
            is_finite = bool(total.isfinite())
        else:
            is_finite = bool((total + norm).isfinite())
        return self._workers.all(is_finite)

    def after_train(self) -> None:
        # if resumed after the last step, the loop has counted one step too many
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def state_dict(self) -> dict:
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "nonfinite_steps": self.nonfinite.count,
            "means": self.means.state_dict(),
            "logged": self.logged,
            "optimizer_type": type(self.optimizer).__name__,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Raises ValueError for the state of another optimizer, which might fit partly."""
        mine, saved = type(self.optimizer).__name__, state_dict["optimizer_type"]
        if saved != mine:
            raise ValueError(f"it was made with {saved}, the config has {mine}")
        hooks = state_dict.get("hooks", {})
        hooks = {_FORMER_HOOKS.get(name, name): state for name, state in hooks.items()}
        super().load_state_dict({**state_dict, "hooks": hooks})
        self.means.load_state_dict(state_dict["means"])
        self.logged = state_dict["logged"]
        # a scaler that is switched off has no state
        if state_dict["grad_scaler"]:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.nonfinite.count = state_dict["nonfinite_steps"]


class _Workers:
    """Communication between processes in a step, through host memory."""

    def __init__(self):
        self.count = comm.get_world_size()
        alone = self.count == 1
        self._group = None if alone else torch.distributed.new_group(backend="gloo")

    def exchange(self, boxes: int, signum: int) -> tuple[float, int]:
        """The mean number of boxes, and the signal that any process has received."""
        if self.count == 1:
            return float(boxes), signum
        mine = torch.tensor([boxes, signum])
        all_of_them = [torch.empty_like(mine) for _ in range(self.count)]
        torch.distributed.all_gather(all_of_them, mine, group=self._group)
        counts, signals = torch.stack(all_of_them).T.tolist()
        return sum(counts) / self.count, deciding_signal(signals)

    def all(self, mine: bool) -> bool:
        """Whether the value is True on every process."""
        if self.count == 1:
            return mine
        verdict = torch.tensor(int(mine))
        torch.distributed.all_reduce(verdict, op=torch.distributed.ReduceOp.MIN, group=self._group)
        return bool(verdict)
