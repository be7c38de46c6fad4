"""What torch.compile needs."""

import os
import shutil

import torch

from dab_detr.errors import InputError


def require_compiler(device: torch.device, setting: str) -> None:
    """Refuse to compile for a CPU without a C++ compiler; on a GPU, Triton brings its own.

    Args:
        setting: what asked for it, for the message.

    Raises:
        InputError: if there is none.
    """
    compilers = (os.environ.get("CXX"), "g++", "clang++")
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise InputError(
            f"{setting} needs a C++ compiler, and neither CXX, g++ nor clang++ is there: install "
            "one or leave it out."
        )
