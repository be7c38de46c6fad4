"""The endless stream of training samples, each a function of the seed and its place alone.

Detectron2's own loader draws the augmentation from the state of whichever process comes to it, so a
training that is stopped cannot go on as if nothing had happened. Here a sample depends neither on
the samples before it nor on the number of data workers, GPUs or micro-batches.
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
    """Numbers what another sampler yields.

    Args:
        sampler: yields this worker's indices, every ``world_size``-th of a common stream, as all of
            Detectron2's training samplers do.
        start: how many of them to pass over.

    Yields:
        ``(position, index)``, where positions count the samples of all workers.
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

    An image that cannot be read is replaced by another, drawn from the same seed, and named under
    "unreadable" in the sample that comes instead; :class:`UnreadableImages` takes it from there.

    Args:
        records: Detectron2's dicts.
        mapper: makes a sample of a record; random numbers come from ``random``, ``numpy.random`` or
            ``torch``. None leaves the record out.
        seed: not negative.
        max_unreadable: after this many replacements in a row the sample holds no image.
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
        # a file may be in several records
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
    """Wraps a loader of :class:`SampleStream`'s batches; names what could not be read.

    Args:
        loader: yields lists of samples.
        limit: this many different files may be unreadable in this process.

    Raises:
        InputError: on iteration, when there are more, or no image could be read.
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
                        f"{unreadable[-1][1]} None of the images that were tried in its place can "
                        "be read either: mend the training data."
                    )
            yield batch

    def _note(self, file_name: str, reason: str) -> None:
        if file_name in self._files:
            return
        self._files.add(file_name)
        if len(self._files) > self._limit:
            raise InputError(
                f"{reason} It is number {len(self._files)} of the images that cannot be read, and "
                f"train.max_unreadable_images is {self._limit}: mend or remove them, or raise it."
            )
        logging.getLogger(__name__).warning(
            f"{reason} Another image takes its place ({len(self._files)} of at most {self._limit})."
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
    """Inside, ``random``, ``numpy.random`` and torch's CPU generator follow from the numbers."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed_generators(*numbers)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
