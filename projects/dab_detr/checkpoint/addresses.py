"""Where a checkpoint is: a local path, the name of published weights, or an address."""

import os
from typing import NamedTuple

from detectron2.utils.file_io import PathManager

from dab_detr.checkpoint import hub
from dab_detr.checkpoint.downloads import DownloadError, ResumingHandler
from dab_detr.checkpoint.zoo import PUBLISHED, Published, hint
from dab_detr.errors import InputError, one_line

PathManager.register_handler(ResumingHandler({x.source: x.sha256 for x in PUBLISHED.values()}))


class Located(NamedTuple):
    """A checkpoint on this machine.

    Attributes:
        path: of a file, or of a folder of transformers.
        published: its row of the table, if it was given by a name.
    """

    path: str
    published: Published | None = None


def locate(weights: str | os.PathLike) -> Located:
    """Find a checkpoint, and download it if it is not on this machine.

    Args:
        weights: a path; the name of published weights, see ``dab-detr zoo``; a model of the Hugging
            Face hub, ``hf://OWNER/REPO`` or ``hf://OWNER/REPO@REVISION``; or another address of
            Detectron2's path manager. An existing path goes before a name.

    Raises:
        InputError: if there is none, or it cannot be downloaded.
    """
    weights = os.fspath(weights)
    require_known(weights)
    if os.path.exists(weights):
        return Located(weights)
    published = PUBLISHED.get(weights)
    source = published.source if published else weights
    try:
        if source.startswith(hub.PREFIX):
            path = hub.folder_of(source, published and published.sha256)
        else:
            path = PathManager.get_local_path(source)
    except InputError:
        raise
    # the handlers of others raise anything
    except Exception as error:
        reason = str(error) if isinstance(error, DownloadError) else one_line(error)
        named = weights if weights == source else f"{weights} ({source})"
        raise InputError(
            f"The checkpoint {named} cannot be downloaded: {reason}. Give a local file, or start "
            "a training from random weights with train.init_checkpoint=''."
        ) from error
    return Located(path, published)


def require_known(weights: str) -> None:
    """Refuse what is neither an existing path, nor a name, nor an address.

    Raises:
        InputError: with the names that are close.
    """
    if not ("://" in weights or weights in PUBLISHED or os.path.exists(weights)):
        raise InputError(f"There is no checkpoint file {weights}{hint(weights)}")
