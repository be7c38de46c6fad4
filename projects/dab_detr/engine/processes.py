"""Several processes: started by torchrun or a cluster, or by Detectron2's launch()."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator

import torch
from detectron2.utils import comm

from dab_detr.errors import InputError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def joined_workers(device: torch.device) -> Iterator[None]:
    """Inside, this process belongs to the group that torchrun's environment variables describe.

    Without ``WORLD_SIZE``, or with 1, nothing happens.

    Raises:
        InputError: if some of the variables are missing, or there are more processes than GPUs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
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
