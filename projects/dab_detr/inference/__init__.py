"""Inference with trained models."""

from dab_detr.inference.copy import inference_copy

__all__ = ["inference_copy"]
