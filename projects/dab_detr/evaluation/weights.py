"""Loads what is evaluated by ``--eval-only``: a checkpoint, or an exported file."""

import copy
import logging
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dab_detr.checkpoint.average import NoAverage
from dab_detr.checkpoint.checkpointer import Checkpointer
from dab_detr.config import copy_config
from dab_detr.data.datasets import datasets_of
from dab_detr.errors import InputError
from dab_detr.exported import ExportMetadata
from dab_detr.inference.copy import inference_copy
from dab_detr.inference.loading import numbered_names
from dab_detr.inference.runtimes import ExportedRuntime, load_exported

logger = logging.getLogger(__name__)


class ExportedDetector(nn.Module):
    """An exported file with the interface of Detectron2's models, for evaluations on the CPU.

    Args:
        runtime: of the file.
    """

    def __init__(self, runtime: ExportedRuntime):
        super().__init__()
        self._runtime = runtime

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict]:
        """Detections, in the same form as those of a :class:`DABDETR` in evaluation mode.

        Args:
            batched_inputs: one dict per image: ``image``, uint8 ``(C, H, W)``, resized as the file
                says, and the image's own ``height`` and ``width``.
        """
        images = [x["image"] for x in batched_inputs]
        return [
            {"instances": found.instances(tuple(image.shape[-2:]), (x["height"], x["width"]))}
            for found, image, x in zip(self._runtime(images), images, batched_inputs)
        ]


def load_to_evaluate(
    cfg: DictConfig, model: nn.Module, class_names: Sequence[str] | None
) -> nn.Module | None:
    """Load ``train.init_checkpoint`` into the model.

    Returns:
        With ``train.ema.enabled``, a copy of the model with the file's EMA weights, if it has any;
        else None.

    Raises:
        InputError: if the file does not fit, see :class:`Checkpointer`.
    """
    path = cfg.train.init_checkpoint
    Checkpointer(model, complete=True, class_names=class_names).load(path)
    if not cfg.train.ema.enabled:
        return None
    averaged = copy.deepcopy(model)
    checkpointer = Checkpointer(averaged, complete=True, averaged=True, class_names=class_names)
    try:
        checkpointer.load(path)
    except NoAverage as error:
        logger.warning(f"{error} Only its raw weights are evaluated.")
        return None
    return averaged


def load_exported_to_evaluate(cfg: DictConfig) -> tuple[DictConfig, ExportedDetector]:
    """Load the exported file that ``train.init_checkpoint`` names.

    Args:
        cfg: is not changed.

    Returns:
        A config whose test images are resized as the file says, and the file as a model.

    Raises:
        InputError: if the file cannot be read, or has other classes than the test data, and for a
            config without ``dataloader.test.mapper``.
    """
    path = cfg.train.init_checkpoint
    file = load_exported(path)
    _require_same_classes(cfg, path, file.metadata)
    cfg = copy_config(cfg)
    mapper = OmegaConf.select(cfg, "dataloader.test.mapper")
    if not isinstance(mapper, DictConfig):
        raise InputError(
            f"The config has no dataloader.test.mapper, in which to resize images as {path} says."
        )
    edge, longest = file.metadata.short_edge, file.metadata.max_size
    limit = {} if longest is None else {"max_size": longest}
    resizing = [] if edge is None else [L(T.ResizeShortestEdge)(short_edge_length=edge, **limit)]
    mapper.augmentations = resizing
    mapper.image_format = file.metadata.image_format
    size = "not resized" if edge is None else f"resized to a shorter side of {edge} pixels"
    size += f" and a longer one of at most {longest}" if limit else ""
    logger.info(f"{path}: {file.computes}; images are {size}, as the file says.")
    return cfg, ExportedDetector(ExportedRuntime(file))


def fast_copy(model: nn.Module) -> nn.Module:
    """An :func:`inference_copy`, or the exported file, which computes as it is."""
    return model if isinstance(model, ExportedDetector) else inference_copy(model)


def _require_same_classes(cfg: DictConfig, path: str, metadata: ExportMetadata) -> None:
    """A file's labels cannot be selected or reordered without changing which ones are the best."""
    names = list(metadata.class_names)
    for dataset in datasets_of(cfg, "test"):
        wanted = list(dataset.classes)
        # as with checkpoints, the number has to do for names that are not known
        same = names == wanted or names == numbered_names(len(wanted))
        if wanted and not same:
            pairs = enumerate(zip_longest(map(repr, names), map(repr, wanted), fillvalue="missing"))
            number, (found, needed) = next(x for x in pairs if x[1][0] != x[1][1])
            raise InputError(
                f"{path} has other classes than the data set {dataset.title}: class {number} is "
                f"{found} and {needed}; evaluate it on data with the same classes in the same "
                "order."
            )
