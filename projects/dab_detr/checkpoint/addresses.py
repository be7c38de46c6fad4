"""Where a checkpoint is: a local path, or an address of Detectron2's path manager."""

import os

from detectron2.utils.file_io import PathManager

from dab_detr.errors import InputError, one_line


def local_path(weights: str | os.PathLike) -> str:
    """The local path of a checkpoint, which is downloaded if it is an address.

    Raises:
        InputError: if there is none, or it cannot be downloaded.
    """
    weights = os.fspath(weights)
    if "://" in weights:
        try:
            return PathManager.get_local_path(weights)
        except Exception as error:
            reason = one_line(error)
            raise InputError(
                f"The checkpoint {weights} cannot be downloaded ({reason}); give a local file "
                "with train.init_checkpoint=FILE, or start from random weights with "
                "train.init_checkpoint=''."
            ) from error
    if not os.path.exists(weights):
        raise InputError(f"There is no checkpoint file {weights}.")
    return weights
