"""What depends on several processes, in two real ones that talk through gloo."""

import pytest
import torch
import torch.multiprocessing as mp

from dab_detr.modeling import HungarianMatcher, SetCriterion, Targets


def losses_of(rank, scale):
    """Losses of one worker's batch: the first has one object, the second three."""
    generator = torch.Generator().manual_seed(rank)
    count = (1, 3)[rank]
    class_logits = torch.randn(2, 1, 5, 4, generator=generator)
    box_logits = torch.randn(2, 1, 5, 4, generator=generator)
    targets = Targets(
        labels=torch.randint(4, (count,), generator=generator),
        boxes_cxcywh=torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
        counts=[count],
    )
    losses = SetCriterion(HungarianMatcher())(class_logits, box_logits, targets)
    return {name: loss.item() * scale for name, loss in losses.items()}


def worker(rank, address, queue):
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    queue.put((rank, losses_of(rank, 1)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_losses_are_divided_by_the_mean_number_of_objects(tmp_path):
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(worker, (f"file://{tmp_path}/meeting", queue), nprocs=2)
    together = dict(queue.get() for _ in range(2))
    for rank, count in enumerate((1, 3)):
        # alone a worker divides by its own count, together both by the mean of 1 and 3
        expected = losses_of(rank, count / 2)
        assert together[rank] == pytest.approx(expected, rel=1e-5)
