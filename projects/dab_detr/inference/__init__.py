"""Trained models that predict."""

from dab_detr.inference.copy import inference_copy

__all__ = ["inference_copy"]
