"""All layouts, and detection of a file's layout."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dab_detr.checkpoint.detrex import DETREX
from dab_detr.checkpoint.huggingface import HF
from dab_detr.checkpoint.layout import Layout
from dab_detr.checkpoint.mmdetection import MMDETECTION
from dab_detr.checkpoint.official import OFFICIAL
from dab_detr.checkpoint.pretrained import DETECTRON2, TORCHVISION
from dab_detr.checkpoint.version_1 import VERSION_1

# The project's own names.
DAB_DETR = Layout(
    name="dab_detr",
    mark=r"transformer\.queries\..+",
    rows=(("{rest}", "{rest}"),),
    unused=(),
)

LAYOUTS = {
    layout.name: layout
    for layout in (DAB_DETR, VERSION_1, OFFICIAL, DETREX, HF, MMDETECTION, TORCHVISION, DETECTRON2)
}


def detect_layout(
    names: Iterable[str], description: Mapping[str, Any] | None = None
) -> Layout | None:
    """The layout of a file; None for an unknown one and for a backbone in Detectron2's names.

    Args:
        names: names of the file's tensors.
        description: the file's description, if it is this project's own; then the names are not
            needed, except to detect a backbone.
    """
    names = list(names)
    if description is not None and not all(name.startswith("backbone.") for name in names):
        return VERSION_1 if description["version"] == 1 else DAB_DETR
    for layout in LAYOUTS.values():
        mark = re.compile(layout.mark)
        if any(mark.fullmatch(name) for name in names):
            return layout
    return None
