"""Loads the weights for ``--eval-only``."""

import copy
import logging
from collections.abc import Sequence

from omegaconf import DictConfig
from torch import nn

from dab_detr.checkpoint.average import NoAverage
from dab_detr.checkpoint.checkpointer import Checkpointer

logger = logging.getLogger(__name__)


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
