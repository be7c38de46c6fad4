"""The infinite stream of training samples; each depends only on the seed and its position.

In Detectron2's own loader, augmentations depend on the state of a worker's random generators, so a
training cannot be resumed exactly. Here a sample depends neither on earlier samples nor on the
number of data workers, GPUs or micro-batches.
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from dab_detr.data.images import UnreadableImage
from dab_detr.errors import InputError

_UNREADABLE = "unreadable"


class PositionSampler(Sampler):
    """Adds positions to the indices of another sampler.

    Args:
        sampler: yields this process's indices, every ``world_size``-th of a common stream, like all
            of Detectron2's training samplers.
        start: number of indices to skip.

    Yields:
        ``(position, index)``; positions count the samples of all processes.
    """

    def __init__(self, sampler: Iterable[int], start: int = 0):
        self._sampler = sampler
        self._start = start
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for number, index in islice(enumerate(self._sampler), self._start, None):
            yield number * self._world_size + self._rank, index


class SampleStream(Dataset):
    """Maps ``(position, index)`` to the mapped record ``index``.

    An image that cannot be read is replaced by another one, drawn with the same seed. The new
    sample names the file under "unreadable", for :class:`UnreadableImages`.

    Args:
        records: Detectron2's dicts.
        mapper: maps a record to a sample, with random numbers from ``random``, ``numpy.random`` or
            ``torch``. If it returns None, the record is skipped.
        seed: not negative.
        max_unreadable: after this many replacements in a row the sample has no image.
    """

    def __init__(
        self,
        records: Sequence[dict],
        mapper: Callable[[dict], dict | None],
        *,
        seed: int,
        max_unreadable: int = 0,
    ):
        self._records = records
        self._mapper = mapper
        self._seed = seed
        self._max_unreadable = max_unreadable

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        unreadable: list[tuple[str, str]] = []
        failed: set[int] = set()
        attempt = 0
        # several records may have the same file
        while len(dict(unreadable)) <= self._max_unreadable:
            with seeded(self._seed, position, attempt):
                record = self._records[index]
                try:
                    sample = self._mapper(record)
                except (UnreadableImage, SizeMismatchError, OSError) as error:
                    unreadable.append((record.get("file_name", "?"), str(error)))
                    failed.add(index)
                    sample = None
                if sample is not None:
                    return {**sample, _UNREADABLE: unreadable} if unreadable else sample
                if len(failed) == len(self._records):
                    break
                while (index := random.randrange(len(self._records))) in failed:
                    pass
            attempt += 1
            if attempt > self._max_unreadable + 1000:
                raise InputError("The mapper returns None for every record of the training data.")
        return {_UNREADABLE: unreadable}


class UnreadableImages:
    """Wraps a loader of :class:`SampleStream`'s batches; reports images that cannot be read.

    Args:
        loader: yields lists of samples.
        limit: number of different unreadable files allowed in this process.

    Raises:
        InputError: on iteration, if there are more, or if no image can be read.
    """

    def __init__(self, loader: Iterable[list[dict]], limit: int):
        self._loader = loader
        self._limit = limit
        self._files: set[str] = set()

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            for sample in batch:
                unreadable = sample.pop(_UNREADABLE, ())
                for file_name, reason in unreadable:
                    self._note(file_name, reason)
                if unreadable and not sample:
                    raise InputError(
                        f"{unreadable[-1][1]} None of the images that were tried instead can be "
                        "read either: repair the training data."
                    )
            yield batch

    def _note(self, file_name: str, reason: str) -> None:
        if file_name in self._files:
            return
        self._files.add(file_name)
        if len(self._files) > self._limit:
            raise InputError(
                f"{reason} {len(self._files)} images cannot be read, but "
                f"train.max_unreadable_images is {self._limit}: repair or remove them, or raise it."
            )
        logging.getLogger(__name__).warning(
            f"{reason} Another image is used instead ({len(self._files)} of at most {self._limit})."
        )


def seed_generators(*numbers: int) -> int:
    """Seed ``random``, ``numpy.random`` and torch's CPU generator; returns torch's seed."""
    first, second, third = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)
    return third


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds ``random``, ``numpy.random`` and torch's CPU generator; restores them at the end."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed_generators(*numbers)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
