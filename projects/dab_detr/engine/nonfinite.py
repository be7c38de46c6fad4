"""Handles steps whose loss or gradient is NaN or infinite."""

import logging
import os
from pathlib import Path

import torch
from detectron2.utils import comm
from torch import Tensor

from dab_detr.errors import listed
from dab_detr.files import atomic_write


class NonFiniteSteps:
    """Counts non-finite steps, saves their batches, and stops if there are too many.

    Args:
        folder: for ``nonfinite_step_<step>_worker_<rank>.pth``; None: nothing is saved.
        limit: number of steps of the training that may be skipped.

    Attributes:
        count: number of such steps so far.
    """

    def __init__(self, folder: str | os.PathLike | None = None, limit: int = 0):
        self._folder = folder
        self.limit = limit
        self.count = 0

    def note(
        self, step: int, losses: dict[str, Tensor], norm: Tensor, batches: list[list[dict]]
    ) -> None:
        """Report a step whose losses or gradient are not finite.

        Args:
            step: from 1.
            losses: of this process, by name. norm: of the gradient over all processes.
            batches: the micro-batches of this process.

        Raises:
            FloatingPointError: if more steps than the limit were not finite.
        """
        self.count += 1
        values = {name: loss.item() for name, loss in losses.items()}
        wrong = [f"{k} = {v}" for k, v in values.items() if not torch.tensor(v).isfinite()]
        images = [str(x.get("file_name", "?")) for batch in batches for x in batch]
        message = (
            f"Step {step} has no finite {'loss' if wrong else 'gradient'} "
            f"({listed(wrong) if wrong else f'its norm is {norm.item()}, the losses are finite'}) "
            f"on images {', '.join(images)}."
        )
        if self._folder is not None:
            path = Path(self._folder) / f"nonfinite_step_{step:07d}_worker_{comm.get_rank()}.pth"
            self._save(path, values, norm.item(), batches)
            message += f" The batch is saved in {path}."
        if self.count > self.limit:
            raise FloatingPointError(
                f"{message} Lower the learning rate, clip the gradient (train.clip_grad.max_norm), "
                "use bfloat16 instead of float16, or check the batch; train.max_nonfinite_steps="
                f"{self.count} would skip it."
            )
        logging.getLogger(__name__).warning(
            f"{message} The step is skipped ({self.count} of at most {self.limit})."
        )

    @staticmethod
    def _save(path: Path, losses: dict[str, float], norm: float, batches: list[list[dict]]) -> None:
        """Save plain tensors and numbers, which ``torch.load`` can read safely."""
        content = {
            "losses": losses,
            "grad_norm": norm,
            "batches": [
                [
                    {
                        "file_name": str(image.get("file_name", "")),
                        "image": image["image"],
                        "boxes_xyxy": image["instances"].gt_boxes.tensor,
                        "classes": image["instances"].gt_classes,
                    }
                    for image in batch
                ]
                for batch in batches
            ],
        }
        atomic_write(path, lambda file: torch.save(content, file))
