"""Multiple processes, started by torchrun, a cluster, or Detectron2's launch()."""

import argparse
import contextlib
import multiprocessing
import os
import signal
import zlib
from collections.abc import Iterator

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from dab_detr.errors import InputError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched_processes(args: argparse.Namespace) -> int:
    """Number of processes that torchrun or a cluster has started; 1 if they have started none.

    Args:
        args: the command line; ``num_gpus`` and ``num_machines`` have to agree or be left out.

    Raises:
        InputError: if they do not agree, or ``WORLD_SIZE`` is not a number.
    """
    size = _number("WORLD_SIZE")
    asked = args.num_gpus * args.num_machines
    if size > 1 and asked not in (1, size) and args.num_gpus != _number("LOCAL_WORLD_SIZE"):
        raise InputError(
            f"torchrun has started {size} processes (WORLD_SIZE), but --num-gpus and "
            f"--num-machines ask for {asked}: leave these options out."
        )
    return size


def is_first_process(args: argparse.Namespace) -> bool:
    """Whether this is process 0, or will start it; needs no communication."""
    return args.machine_rank == 0 and os.environ.get("RANK", "0") == "0"


def _number(variable: str) -> int:
    value = os.environ.get(variable, "1")
    if not value.isdecimal() or int(value) < 1:
        raise InputError(
            f"The environment's {variable} is {value!r}; a whole number from 1 is needed: start "
            "this with torchrun, or unset it."
        )
    return int(value)


@contextlib.contextmanager
def init_distributed(device: torch.device) -> Iterator[None]:
    """A context in which this process is in the group of torchrun's environment variables.

    Does nothing without ``WORLD_SIZE``, or if it is 1.

    Raises:
        InputError: if some of the variables are missing, or there are more processes than GPUs.
    """
    if _number("WORLD_SIZE") == 1:
        yield
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is set, as torchrun does, but not {', '.join(missing)}: start this with "
            "torchrun, or unset WORLD_SIZE."
        )
    local_rank, local_size = (int(os.environ[x]) for x in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if device.type == "cuda":
        if local_size > torch.cuda.device_count():
            raise InputError(
                f"{local_size} processes on this machine need {local_size} GPUs; it has "
                f"{torch.cuda.device_count()}."
            )
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        comm.create_local_process_group(local_size)
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def signals_for_children() -> Iterator[None]:
    """A context in which SIGTERM and SIGUSR2 are forwarded to the child processes.

    Ctrl-C reaches them anyway. A second SIGTERM kills them, as they may be waiting for each
    other.
    """
    forwarded: set[int] = set()

    def forward(signum: int, frame: object) -> None:
        again = signum == signal.SIGTERM and signum in forwarded
        forwarded.add(signum)
        for child in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL if again else signum)

    def leave_to_children(signum: int, frame: object) -> None:
        pass

    handlers = {signal.SIGTERM: forward, signal.SIGINT: leave_to_children}
    if hasattr(signal, "SIGUSR2"):
        handlers[signal.SIGUSR2] = forward
    previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def require_equal_weights(model: nn.Module, start_iter: int = 0) -> None:
    """Check that all processes start with the same model, bit for bit, at the same step.

    Otherwise they would train different models, as only gradients are exchanged.

    Args:
        model: all its parameters and buffers are compared, also non-persistent ones.
        start_iter: first iteration of this process.

    Raises:
        InputError: on every process, naming the first tensor that differs.
    """
    if comm.get_world_size() == 1:
        return
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    mine = start_iter, {name: _checksum(tensor) for name, tensor in tensors.items()}
    first, *others = comm.all_gather(mine)
    for rank, other in enumerate(others, start=1):
        if other[0] != first[0]:
            raise InputError(
                f"Process 0 starts at step {first[0] + 1}, process {rank} at step {other[0] + 1}: "
                "all machines have to read the same checkpoints in train.output_dir."
            )
        for name in [*first[1], *other[1]]:
            if first[1].get(name) != other[1].get(name):
                raise InputError(
                    f"Process {rank} starts with another {name} than process 0: all machines have "
                    "to read the same files (train.init_checkpoint, checkpoints) and build the "
                    "same model."
                )


def _checksum(tensor: Tensor) -> tuple[tuple[int, ...], str, int]:
    content = tensor.detach().to("cpu", copy=False).contiguous().reshape(-1)
    return tuple(tensor.shape), str(tensor.dtype), zlib.crc32(content.view(torch.uint8).numpy())
