"""What depends on several processes, in two real ones that talk through gloo."""

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from dab_detr.engine.nonfinite import NonFiniteSteps
from dab_detr.engine.trainer import Trainer
from dab_detr.files import write_whole
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


class Scored(torch.nn.Module):
    """A loss that the batch says."""

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch, num_boxes):
        return {"loss": self.x.sum() * batch[0]["value"]}


def train_with_nan(rank, address, folder, dtype, queue):
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    objects = Instances((4, 4), gt_boxes=Boxes(torch.zeros(1, 4)), gt_classes=torch.tensor([0]))
    values = [1.0, float("nan") if rank else 1.0, 1.0]
    image = {"image": torch.zeros(1), "instances": objects, "file_name": f"of {rank}"}
    model = torch.nn.parallel.DistributedDataParallel(Scored())
    trainer = Trainer(
        model,
        [[{**image, "value": value}] for value in values],
        torch.optim.SGD(model.parameters(), lr=0.1),
        device=torch.device("cpu"),
        amp_dtype=dtype,
        nonfinite=NonFiniteSteps(folder, 1),
    )
    with EventStorage() as storage:
        for trainer.iter in range(3):
            storage.iter = trainer.iter
            trainer.run_step()
    queue.put((rank, model.module.x.item(), trainer.nonfinite.count))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_step_is_skipped_by_all_workers_or_by_none(tmp_path, dtype):
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(train_with_nan, (f"file://{tmp_path}/meeting", str(tmp_path), dtype, queue), nprocs=2)
    for _ in range(2):
        _, x, skipped = queue.get()
        assert skipped == 1 and x == pytest.approx(0.8, rel=1e-3)
    assert len(list(tmp_path.glob("nonfinite_step_0000002_worker_*.pth"))) == 2


def write_often(rank, path):
    for _ in range(200):
        write_whole(path, lambda file: file.write(b"x" * 100_000))


def test_several_processes_may_write_one_file(tmp_path):
    mp.spawn(write_often, (str(tmp_path / "file"),), nprocs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"x" * 100_000
