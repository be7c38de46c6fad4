"""The DAB-DETR model. Only ``meta_arch`` knows Detectron2's images and Instances.

Names are imported on first use: ``Core`` and its parts need neither Detectron2 nor fvcore.
"""

import importlib

_EXPORTS = {
    "DABDETR": "meta_arch",
    "DABTransformer": "transformer",
    "Core": "core",
    "Detections": "core",
    "select_detections": "core",
    "Encoder": "encoder",
    "Decoder": "decoder",
    "QueryFormulation": "queries.base",
    "AnchorBoxQueries": "queries.anchor_boxes",
    "SetCriterion": "criterion",
    "HungarianMatcher": "matcher",
    "Encoding": "structures",
    "Matches": "structures",
    "Memory": "structures",
    "Outputs": "structures",
    "Queries": "structures",
    "Targets": "structures",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
