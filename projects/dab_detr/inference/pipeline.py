"""Calls a function in threads beside the main thread, a few items ahead of it."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def threads(count: int) -> Iterator[Executor]:
    """A context with threads; at its end running calls are finished and waiting ones dropped."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, count: int
) -> Iterator[Result]:
    """``map(function, items)``, in order, whose next results are computed by the pool.

    Args:
        items: iterated in the calling thread.
        count: how many items are started before their results are needed: no more than that are
            in memory.
    """
    started: deque = deque()
    for item in items:
        started.append(pool.submit(function, item))
        if len(started) > count:
            yield started.popleft().result()
    while started:
        yield started.popleft().result()
