"""What depends on several processes, in two real ones that talk through gloo."""

import datetime
import multiprocessing
import os
import traceback
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import FPN
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from dab_detr.config import get_config, list_configs
from dab_detr.engine.launching.processes import require_equal_weights
from dab_detr.engine.nonfinite import NonFiniteSteps
from dab_detr.engine.trainer import Trainer
from dab_detr.engine.training import train
from dab_detr.engine.unused import freeze_unused
from dab_detr.errors import InputError
from dab_detr.files import atomic_write
from dab_detr.modeling import HungarianMatcher, Outputs, SetCriterion, Targets

CONFIG = Path(__file__).parent / "assets" / "tiny_config.py"


def serve(rank, address, tasks, results):
    """Joins the group, then runs functions of this module, given the rank and their arguments."""
    timeout = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2, timeout=timeout)
    comm.create_local_process_group(2)
    for function, arguments in iter(tasks.get, None):
        try:
            results.put((function(rank, *arguments), None))
        except Exception:
            results.put((None, traceback.format_exc()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Runs a function in two processes of one group; returns what it returns in each."""
    spawn = multiprocessing.get_context("spawn")
    address = f"file://{tmp_path_factory.mktemp('meeting')}/place"
    queues = [(spawn.Queue(), spawn.Queue()) for _ in range(2)]
    processes = [
        spawn.Process(target=serve, args=(rank, address, *pair), daemon=True)
        for rank, pair in enumerate(queues)
    ]
    for process in processes:
        process.start()

    def run(function, *arguments):
        for tasks, _ in queues:
            tasks.put((function, arguments))
        outcomes = [results.get(timeout=120) for _, results in queues]
        for _, problem in outcomes:
            assert problem is None, problem
        return [value for value, _ in outcomes]

    yield run
    for tasks, _ in queues:
        tasks.put(None)
    for process in processes:
        process.join(20)
        process.kill()


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
    losses = SetCriterion(HungarianMatcher())(Outputs(class_logits, box_logits), targets)
    return {name: loss.item() * scale for name, loss in losses.items()}


def test_losses_are_divided_by_the_mean_number_of_objects(both):
    together = both(losses_of, 1)
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


def train_with_nan(rank, folder, dtype):
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
    return model.module.x.item(), trainer.nonfinite.count


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_step_is_skipped_by_all_workers_or_by_none(both, tmp_path, dtype):
    for x, skipped in both(train_with_nan, str(tmp_path), dtype):
        assert skipped == 1 and x == pytest.approx(0.8, rel=1e-3)
    assert len(list(tmp_path.glob("nonfinite_step_0000002_worker_*.pth"))) == 2


def write_often(rank, path):
    for _ in range(200):
        atomic_write(path, lambda file: file.write(b"x" * 100_000))


def test_several_processes_may_write_one_file(both, tmp_path):
    both(write_often, str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"x" * 100_000


def fine_tune(rank, datasets, *overrides):
    """The bits of the class head after a step, on this process."""
    os.environ["DETECTRON2_DATASETS"] = datasets
    forget_tiny()
    cfg = get_config(CONFIG, ["train.max_iter=1", "train.pictures.tensorboard=0", *overrides])
    default_setup(cfg, None)
    model = instantiate(cfg.model)
    train(cfg, model, torch.device("cpu"), resume=False)
    head = model.transformer.decoder.class_head
    return head.weight.tolist(), head.bias.tolist()


def forget_tiny():
    for name in ("tiny_train", "tiny_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_fine_tuning_to_other_classes_gives_all_processes_one_class_head(
    both, datasets_root, tmp_path, forget_tiny
):
    other = instantiate(get_config(CONFIG, ["model.num_classes=7"]).model)
    torch.save({"model": other.state_dict()}, tmp_path / "seven.pth")
    first, second = both(
        fine_tune, str(datasets_root), f"train.init_checkpoint={tmp_path}/seven.pth",
        f"train.output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert first == second


def train_on_a_pyramid(rank, datasets, folder):
    """Two steps of a model that takes one level of several; DDP fails at the second if it waits."""
    os.environ["DETECTRON2_DATASETS"] = datasets
    forget_tiny()
    overrides = ["train.max_iter=2", "train.pictures.tensorboard=0", f"train.output_dir={folder}"]
    cfg = get_config(CONFIG, overrides)
    cfg.model.backbone.out_features = ["res2", "res3"]
    cfg.model.backbone = LazyCall(FPN)(
        bottom_up=cfg.model.backbone, in_features=["res2", "res3"], out_channels=16
    )
    cfg.model.in_features = ["p3"]
    default_setup(cfg, None)
    model = instantiate(cfg.model)
    start = {name: x.clone() for name, x in model.named_parameters()}
    train(cfg, model, torch.device("cpu"), resume=False)
    changed = {name for name, x in model.named_parameters() if not torch.equal(x, start[name])}
    return sorted(name for name in start if "fpn" in name and name not in changed)


def test_a_level_of_a_feature_pyramid_trains_on_several_processes(
    both, datasets_root, tmp_path, forget_tiny
):
    # the second process begins with the weights of the first
    unchanged, _ = both(train_on_a_pyramid, str(datasets_root), str(tmp_path))
    # the way to p2 alone
    parts = ("lateral2", "output2")
    assert unchanged == [f"backbone.fpn_{x}.{y}" for x in parts for y in ("bias", "weight")]


# what is deep because its blocks repeat
SHALLOW = {
    "vitdet_b": ["model.backbone.net.depth=2", "model.backbone.net.window_block_indexes=[0]"],
    "swin_t": ["model.backbone.depths=[1,1,1,1]"],
}


def step_of(rank, name):
    """Two steps of a config's model on small images, on both processes."""
    small = [
        "model.transformer.encoder.num_layers=1",
        "model.transformer.decoder.num_layers=1",
        "model.transformer.queries.num_queries=8",
    ]
    model = instantiate(get_config(name, small + SHALLOW.get(Path(name).stem, [])).model)
    freeze_unused(model)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    objects = Instances(
        (64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])), gt_classes=torch.tensor([rank])
    )
    for _ in range(2):
        image = {"image": torch.rand(3, 64, 64) * 255, "instances": objects}
        sum(parallel([image], num_boxes=1.0).values()).backward()
    require_equal_weights(model)
    return [p.grad.abs().sum().item() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", [x for x in list_configs() if x.startswith("backbones/")])
def test_every_kind_of_backbone_takes_steps_on_several_processes(both, name):
    if any(kind in name for kind in ("timm", "vit")):
        pytest.importorskip("timm")
    first, second = both(step_of, name)
    assert first == second


def disagree(rank, what):
    """What is said when the processes differ in one bit of one tensor, or in where they begin."""
    model = torch.nn.BatchNorm1d(3)
    model.register_buffer("unsaved", torch.ones(2, dtype=torch.bfloat16), persistent=False)
    if rank and what != "step":
        getattr(model, what).data.reshape(-1).view(torch.uint8)[0] ^= 1
    try:
        require_equal_weights(model, 4 + rank * (what == "step"))
    except InputError as error:
        return str(error)


@pytest.mark.parametrize(
    "what, words",
    [
        ("weight", "Process 1 starts with another weight than process 0"),
        ("num_batches_tracked", "another num_batches_tracked"),
        ("unsaved", "another unsaved"),
        ("step", "Process 0 starts at step 5, process 1 at step 6"),
    ],
)
def test_processes_that_begin_differently_are_refused(both, what, words):
    for said in both(disagree, what):
        assert words in said
