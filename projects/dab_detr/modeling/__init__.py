"""The DAB-DETR model. Only ``meta_arch`` knows Detectron2's images and Instances."""

from dab_detr.modeling.criterion import SetCriterion
from dab_detr.modeling.matcher import HungarianMatcher, Matches, Targets
from dab_detr.modeling.meta_arch import DABDETR, select_detections
from dab_detr.modeling.transformer import DABTransformer

__all__ = [
    "DABDETR",
    "DABTransformer",
    "HungarianMatcher",
    "Matches",
    "SetCriterion",
    "Targets",
    "select_detections",
]
