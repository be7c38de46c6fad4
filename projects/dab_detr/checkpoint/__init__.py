"""Reading and writing checkpoints."""

from dab_detr.checkpoint.checkpointer import Checkpointer

__all__ = ["Checkpointer"]
