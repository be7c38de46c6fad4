"""What happens when a loss or a gradient is NaN or infinite."""

import logging
import os
from pathlib import Path

import torch
from detectron2.utils import comm
from torch import Tensor

from dab_detr.errors import listed
from dab_detr.files import write_whole


class NonFiniteSteps:
    """Counts the steps that cannot be taken, saves what led to them, stops when there are too many.

    Args:
        folder: where ``nonfinite_step_<step>_worker_<rank>.pth`` goes; None: nothing is saved.
        limit: so many steps of the training are skipped.

    Attributes:
        count: of the steps so far.
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
            losses: of this worker, by name. norm: of the gradient of all workers.
            batches: the micro-batches of this worker.

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
                "leave float16 for bfloat16, or look at the batch; train.max_nonfinite_steps="
                f"{self.count} would skip it."
            )
        logging.getLogger(__name__).warning(
            f"{message} The step is skipped ({self.count} of at most {self.limit})."
        )

    @staticmethod
    def _save(path: Path, losses: dict[str, float], norm: float, batches: list[list[dict]]) -> None:
        """Plain tensors and numbers, so that ``torch.load`` reads them safely."""
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
        write_whole(path, lambda file: torch.save(content, file))
