"""DAB-DETR, dynamic anchor boxes as queries of a detection transformer, for Detectron2.

``get_config(name)`` loads a config, ``add_dab_detr_config(cfg)`` prepares a YAML config,
``DABDETR`` is the meta-architecture, ``Predictor(weights)`` detects objects in images,
``load_model(weights)`` loads a trained model, ``inference_copy(model)`` makes a faster copy for
inference, and ``keep_freed_memory()`` makes programs on a CPU faster.
"""

import logging
import warnings

__version__ = "0.2.0"

# Warnings about Detectron2's own calls, which a user cannot change. At the end of the list, so that
# -W and the user's filters take precedence.
for _message in (r".*torch\.jit\.script.* is deprecated", ".*broadcast_buffers.* is deprecated"):
    warnings.filterwarnings("ignore", _message, FutureWarning, append=True)
# a warning about a CUDA toolkit without a GPU
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

_EXPORTS = {
    "DABDETR": "dab_detr.modeling",
    "add_dab_detr_config": "dab_detr.config",
    "get_config": "dab_detr.config",
    "inference_copy": "dab_detr.inference",
    "Predictor": "dab_detr.inference.predictor",
    "keep_freed_memory": "dab_detr.allocator",
    "load_model": "dab_detr.inference.loading",
}
__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    # Imported on first use: `dab-detr environment` must work without Detectron2.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from dab_detr.errors import NO_DETECTRON2

    try:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        raise ModuleNotFoundError(NO_DETECTRON2, name="detectron2") from error
