"""Compiles modules with torch.compile, and checks for a compiler."""

import os
import shutil
import sys

import torch
from torch import nn
from torch.fx.experimental import _config as fx_config

from dab_detr.errors import InputError


def require_compiler(device: torch.device, setting: str) -> None:
    """Require the compiler that torch.compile will call.

    For a CPU that is a C++ compiler, for a GPU a C compiler, which Triton uses.

    Args:
        setting: the setting that needs it, for the message.

    Raises:
        InputError: if the compiler is missing.
    """
    if device.type == "cpu":
        language, variable = "C++", "CXX"
        usual = ["clang++" if sys.platform == "darwin" else "g++"]
    else:
        language, variable, usual = "C", "CC", ["gcc", "clang"]
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        raise InputError(
            f"{setting} needs a {language} compiler, but {' or '.join(names)} is missing: install "
            f"one, set the variable {variable} to its path, or do not compile."
        )


def compile_for_training(transformer: nn.Module, **options) -> None:
    """Compile a transformer in place, for training with images of all sizes.

    From then on DistributedDataParallel does not split the graphs of this process.

    Args:
        options: arguments of :func:`torch.compile`.
    """
    # DDP splits graphs to send gradients early, but PyTorch 2.14 cannot split graphs with dynamic
    # sizes. The backbone's backward pass, which comes later, hides the communication.
    torch._dynamo.config.optimize_ddp = False
    compile_for_all_sizes(transformer, **options)


def compile_for_all_sizes(module: nn.Module, **options) -> None:
    """Compile a module in place for images of all sizes, square or not.

    From then on the graphs of this process do not assume that sizes which happened to be equal are
    always equal.

    Args:
        options: arguments of :func:`torch.compile`.
    """
    # for a square first image, PyTorch would assume that height and width are always equal, and
    # recompile for the first image that is not square
    fx_config.use_duck_shape = False
    module.compile(dynamic=True, **options)
