"""Reading and writing checkpoints.

``Checkpointer`` is imported on first use: the table of published weights does not need PyTorch.
"""

__all__ = ["Checkpointer"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dab_detr.checkpoint.checkpointer import Checkpointer

    return Checkpointer
