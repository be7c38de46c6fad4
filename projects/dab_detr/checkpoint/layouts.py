"""All layouts, and which of them a file has."""

import re

from dab_detr.checkpoint.detrex import DETREX
from dab_detr.checkpoint.huggingface import HF
from dab_detr.checkpoint.layout import Layout
from dab_detr.checkpoint.mmdetection import MMDETECTION
from dab_detr.checkpoint.official import OFFICIAL
from dab_detr.checkpoint.pretrained import DETECTRON2, TORCHVISION

# The project's own names. Files of version 0.1 show no more than these.
DAB_DETR = Layout(
    name="dab_detr",
    mark=r"transformer\.anchors\.center_logits",
    rows=(("{rest}", "{rest}"),),
    unused=(),
)

LAYOUTS = {
    layout.name: layout
    for layout in (DAB_DETR, OFFICIAL, DETREX, HF, MMDETECTION, TORCHVISION, DETECTRON2)
}


def recognise(names) -> Layout | None:
    """The layout whose mark one of the names matches."""
    for layout in LAYOUTS.values():
        mark = re.compile(layout.mark)
        if any(mark.fullmatch(name) for name in names):
            return layout
    return None
