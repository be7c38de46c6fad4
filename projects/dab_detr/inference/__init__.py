"""Inference with trained models."""

from dab_detr.inference.copy import inference_copy
from dab_detr.inference.loading import LoadedModel, load, load_model

__all__ = ["LoadedModel", "inference_copy", "load", "load_model"]
