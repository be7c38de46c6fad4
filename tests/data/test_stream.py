"""A sample depends on the seed and its place in the stream, on nothing else."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from dab_detr.data.images import UnreadableImage
from dab_detr.data.stream import PositionSampler, SampleStream, UnreadableImages, seeded
from dab_detr.errors import InputError

RECORDS = [{"file_name": f"{i}.png"} for i in range(10)]


def draw(record):
    """A mapper that uses all three generators."""
    return {**record, "drawn": (random.random(), np.random.rand(), torch.rand(1).item())}


def test_samples_follow_from_seed_and_position():
    keys = list(islice(PositionSampler(TrainingSampler(10, seed=3)), 25))
    assert [position for position, _ in keys] == list(range(25))
    assert sorted(index for _, index in keys[:10]) == list(range(10))
    first = [SampleStream(RECORDS, draw, seed=5)[key] for key in keys]
    random.random(), np.random.rand(), torch.rand(1)
    stream = SampleStream(RECORDS, draw, seed=5)
    # the other way round, as other workers would
    second = [stream[key] for key in reversed(keys)][::-1]
    assert first == second
    draws = [sample["drawn"] for sample in first]
    assert len(set(draws)) == 25 and all(len(set(x)) == 25 for x in zip(*draws))
    assert SampleStream(RECORDS, draw, seed=6)[keys[0]]["drawn"] != draws[0]


def test_the_sampler_continues_at_a_position():
    whole = list(islice(PositionSampler(TrainingSampler(10, seed=3)), 40))
    assert list(islice(PositionSampler(TrainingSampler(10, seed=3), 17), 23)) == whole[17:]


def test_workers_share_one_stream(monkeypatch):
    whole = list(islice(PositionSampler(TrainingSampler(10, seed=3)), 40))
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        own = list(islice(PositionSampler(TrainingSampler(10, seed=3), 4), 16))
        assert own == whole[8 + rank :: 2]


def test_the_generators_outside_stay_as_they_are():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with seeded(1, 2):
        random.random(), np.random.rand(), torch.rand(1)
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert states[2] == torch.get_rng_state().tolist()


def refuse(*names):
    def mapper(record):
        if record["file_name"] in names:
            raise UnreadableImage(f"The image {record['file_name']} cannot be read: because.")
        return draw(record)

    return mapper


def test_an_unreadable_image_is_replaced_by_the_same_other_one_each_time():
    for index in range(10):
        name = f"{index}.png"
        first, second = (
            SampleStream(RECORDS, refuse(name), seed=5, max_unreadable=3)[7, index]
            for _ in range(2)
        )
        assert first == second and first["file_name"] != name
        assert first["unreadable"][0][0] == name


def test_a_file_that_several_records_have_counts_once():
    twice = [{"file_name": "1.png"}, {"file_name": "1.png"}, {"file_name": "0.png"}]
    for seed in range(20):
        stream = SampleStream(twice, refuse("1.png"), seed=seed, max_unreadable=1)
        assert stream[0, 0]["file_name"] == "0.png"


def test_unreadable_images_are_counted_by_file(caplog):
    stream = SampleStream(RECORDS, refuse("1.png", "2.png", "3.png"), seed=5, max_unreadable=2)
    batches = [[stream[0, 1]], [stream[1, 0]], [stream[2, 1]], [stream[3, 2]]]
    seen = [sample for batch in UnreadableImages(batches, 3) for sample in batch]
    assert all("unreadable" not in sample for sample in seen)
    for name in ("1.png", "2.png"):
        assert sum(f"{name} cannot be read" in text for text in caplog.messages) == 1
    everything = SampleStream(RECORDS, refuse(*(r["file_name"] for r in RECORDS)), seed=5)
    with pytest.raises(InputError, match=r"\d.png cannot be read.*max_unreadable_images is 0"):
        list(UnreadableImages([[everything[0, 1]]], 0))


def test_a_mapper_may_leave_records_out():
    stream = SampleStream(RECORDS, lambda r: r if r["file_name"] == "4.png" else None, seed=5)
    assert stream[0, 1] == {"file_name": "4.png"}
    with pytest.raises(InputError, match="returns None for every record"):
        SampleStream(RECORDS, lambda r: None, seed=5)[0, 1]
