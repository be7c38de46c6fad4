"""One optimisation step: mixed precision on any device, a bound on the gradient's norm."""

import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import nn

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Trainer(SimpleTrainer):
    """Detectron2's trainer with autocast (its ``AMPTrainer`` needs a GPU) and gradient clipping.

    Args:
        model, data_loader, optimizer: as in :class:`detectron2.engine.SimpleTrainer`.
        device: where the model is.
        amp_dtype: None for full precision; float16 (with a gradient scaler) or bfloat16.
        max_grad_norm: the gradient of all parameters together is scaled down to this L2 norm;
            0 switches clipping off.
        log_period: losses are read, checked and logged every this many steps.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        max_grad_norm: float = 0.0,
        log_period: int = 1,
    ):
        super().__init__(model, data_loader, optimizer, gather_metric_period=log_period)
        self.device_type = torch.device(device).type
        self.amp_dtype = amp_dtype
        self.max_grad_norm = max_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype is torch.float16
        )

    def run_step(self) -> None:
        """Forward, backward, clip and update once."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with torch.autocast(
            self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
        ):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self.grad_scaler.unscale_(self.optimizer)
        # with a bound of infinity the norm is only measured
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or float("inf"))
        self.after_backward()
        self._write_metrics(losses, data_time)
        if (self.iter + 1) % self.gather_metric_period == 0:
            get_event_storage().put_scalar("grad_norm", norm.item())
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
