"""Several processes: started by torchrun or a cluster, or by Detectron2's launch()."""

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
    """How many processes torchrun or a cluster has started, this one among them; 1: none of them.

    Args:
        args: ``num_gpus`` and ``num_machines`` of the command line, which ask for as many or leave
            it open.

    Raises:
        InputError: if the two contradict each other, or ``WORLD_SIZE`` is no number.
    """
    size = _number("WORLD_SIZE")
    asked = args.num_gpus * args.num_machines
    if size > 1 and asked not in (1, size) and args.num_gpus != _number("LOCAL_WORLD_SIZE"):
        raise InputError(
            f"torchrun has started {size} processes (WORLD_SIZE), each of which should start "
            f"{asked} (--num-gpus, --num-machines): leave these options out."
        )
    return size


def is_first_process(args: argparse.Namespace) -> bool:
    """Whether this is the process that writes, or is about to start it; without asking others."""
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
def joined_workers(device: torch.device) -> Iterator[None]:
    """Inside, this process belongs to the group that torchrun's environment variables describe.

    Without ``WORLD_SIZE``, or with 1, nothing happens.

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
                f"{local_size} processes on this machine need as many GPUs; it has "
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
    """Inside, what this process is told by SIGTERM or SIGUSR2, its children are told.

    Ctrl-C reaches them by itself. The second SIGTERM ends them at once, as they may wait for each
    other.
    """
    told: set[int] = set()

    def hand_on(signum: int, frame: object) -> None:
        again = signum == signal.SIGTERM and signum in told
        told.add(signum)
        for child in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL if again else signum)

    def leave_to_children(signum: int, frame: object) -> None:
        pass

    handlers = {signal.SIGTERM: hand_on, signal.SIGINT: leave_to_children}
    if hasattr(signal, "SIGUSR2"):
        handlers[signal.SIGUSR2] = hand_on
    previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def require_equal_weights(model: nn.Module, start_iter: int = 0) -> None:
    """See that all processes begin with the same model, bit for bit, at the same step.

    They would otherwise train different models: what is exchanged is gradients.

    Args:
        model: its parameters and all its buffers count, those too that no checkpoint has.
        start_iter: where this process begins.

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
                f"Process 0 begins at step {first[0] + 1}, process {rank} at step {other[0] + 1}: "
                "all machines have to see the same checkpoints in train.output_dir."
            )
        for name in [*first[1], *other[1]]:
            if first[1].get(name) != other[1].get(name):
                raise InputError(
                    f"Process {rank} begins with another {name} than process 0: all machines have "
                    "to read the same files (train.init_checkpoint, checkpoints) and build the "
                    "same model."
                )


def _checksum(tensor: Tensor) -> tuple[tuple[int, ...], str, int]:
    content = tensor.detach().to("cpu", copy=False).contiguous().reshape(-1)
    return tuple(tensor.shape), str(tensor.dtype), zlib.crc32(content.view(torch.uint8).numpy())
