"""What torch.compile needs, and how the transformer is compiled for training."""

import os
import shutil
import sys

import torch
from torch import nn
from torch.fx.experimental import _config as fx_config

from dab_detr.errors import InputError


def require_compiler(device: torch.device, setting: str) -> None:
    """Refuse to compile without the compiler that PyTorch will call.

    That is a C++ compiler for a CPU, and for a GPU a C compiler, with which Triton builds.

    Args:
        setting: what asked for it, for the message.

    Raises:
        InputError: if there is none.
    """
    if device.type == "cpu":
        language, variable = "C++", "CXX"
        usual = ["clang++" if sys.platform == "darwin" else "g++"]
    else:
        language, variable, usual = "C", "CC", ["gcc", "clang"]
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        raise InputError(
            f"{setting} needs a {language} compiler, and {' or '.join(names)} is not there: "
            f"install one, say in the variable {variable} where it is, or leave compiling out."
        )


def compile_for_training(transformer: nn.Module, **options) -> None:
    """Compile it in place to a graph that takes all sizes of images.

    From then on DistributedDataParallel does not cut this process's graphs.

    Args:
        options: of :func:`torch.compile`.
    """
    # It would cut them to send gradients early, and PyTorch 2.14 cannot cut one that is for all
    # sizes. The backbone's backward pass comes later and hides the sending.
    torch._dynamo.config.optimize_ddp = False
    compile_for_all_sizes(transformer, **options)


def compile_for_all_sizes(module: nn.Module, **options) -> None:
    """Compile it in place to a graph that takes images of all sizes, square and oblong ones.

    From then on no graph of this process is bound to sizes that happened to be equal.

    Args:
        options: of :func:`torch.compile`.
    """
    # PyTorch would take height and width of a first, square image for one and the same number, and
    # compile again for the first image that is not square
    fx_config.use_duck_shape = False
    module.compile(dynamic=True, **options)
