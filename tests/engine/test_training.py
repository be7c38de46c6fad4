"""Training through the package: it learns, goes on where it stopped, and keeps to its bounds."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_setup
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from dab_detr.config import get_config
from dab_detr.engine.optimizer import backbone_lr_factor
from dab_detr.engine.trainer import Trainer
from dab_detr.engine.training import train
from dab_detr.errors import InputError
from dab_detr.evaluation.coco_evaluator import BoxEvaluator
from dab_detr.evaluation.evaluate import evaluate
from dab_detr.visualization.samples import draw_samples

CONFIG = Path(__file__).parents[1] / "assets" / "tiny_config.py"


@pytest.fixture
def config(datasets_root, monkeypatch, tmp_path, forget_tiny):
    """A function that loads the tiny config with overrides."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))

    def load(*overrides):
        forget_tiny()
        # pictures prove nothing here
        fixed = [f"train.output_dir={tmp_path}", "train.pictures.tensorboard=0"]
        return get_config(CONFIG, [*fixed, *overrides])

    return load


def run(cfg, resume=False):
    default_setup(cfg, None)
    model = instantiate(cfg.model)
    results = train(cfg, model, torch.device("cpu"), resume=resume)
    evaluation = json.loads((Path(cfg.train.output_dir) / "evaluation.json").read_text())
    assert evaluation["results"]["bbox"]["AP"] == results["bbox"]["AP"]
    return model, evaluation["step"]


def metrics(folder, name="total_loss"):
    lines = (Path(folder) / "metrics.json").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {r["iteration"]: r[name] for r in records if "total_loss" in r}


def test_thirty_steps_lower_the_loss_and_resume_goes_on(config, tmp_path):
    cfg = config("train.max_iter=30", "optimizer.lr=0.002")
    _, steps = run(cfg)
    assert steps == 30
    by_step = metrics(tmp_path)
    first, last = (sum(by_step[i] for i in part) / 5 for part in (range(5), range(25, 30)))
    assert last < 0.9 * first

    cfg = config("train.max_iter=33", "optimizer.lr=0.002")
    _, steps = run(cfg, resume=True)
    assert steps == 33
    by_step = metrics(tmp_path)
    assert sorted(by_step) == list(range(33))
    assert sum(by_step[i] for i in (30, 31, 32)) / 3 < 0.9 * first
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert checkpoint["iteration"] == 32
    assert {int(s["step"]) for s in checkpoint["trainer"]["optimizer"]["state"].values()} == {33}


# which makes a copy before all others
@pytest.mark.parametrize("scaled", [False, True])
def test_a_config_stays_as_it_is(config, tmp_path, scaled):
    """Through a training, an evaluation and the drawing of samples, with all that they fill in."""
    cfg = config(
        "train.max_iter=1", "train.accumulate=2", f"train.auto_scale_lr.enabled={scaled}",
        "train.ema.enabled=True", "dataloader.test.dataset.names=[tiny_val,tiny_train]",
    )  # fmt: skip
    cfg.dataloader.evaluator = [
        # the second has a cache, which is switched off
        LazyCall(evaluator)(dataset_name="tiny_val", output_dir="${train.output_dir}/boxes")
        for evaluator in (BoxEvaluator, COCOEvaluator)
    ]
    before = OmegaConf.to_container(cfg, resolve=False)
    default_setup(cfg, None)
    model = instantiate(cfg.model)
    assert "bbox_2/tiny_train" in train(cfg, model, torch.device("cpu"), resume=False)
    assert OmegaConf.to_container(cfg, resolve=False) == before
    assert "bbox_2/tiny_train" in evaluate(cfg, model)
    assert OmegaConf.to_container(cfg, resolve=False) == before
    draw_samples(cfg, tmp_path / "samples", count=1)
    assert OmegaConf.to_container(cfg, resolve=False) == before


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "broken.json cannot be read as JSON"),
        ('{"images": []}', "broken.json have no images"),
        (
            '{"images": [{"id": 1, "file_name": "gone.png", "width": 9, "height": 9}],'
            ' "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],'
            ' "categories": [{"id": 1, "name": "thing"}]}',
            "1 images of the training data, 1 do not exist, the first is .*gone.png",
        ),
    ],
    ids=["no JSON", "no images", "image missing"],
)
def test_broken_annotations_are_reported_before_the_first_step(config, tmp_path, content, words):
    (tmp_path / "broken.json").write_text(content)
    register_coco_instances("broken", {}, str(tmp_path / "broken.json"), str(tmp_path))
    try:
        with pytest.raises(InputError, match=words):
            run(config("dataloader.train.dataset.names=broken"))
    finally:
        DatasetCatalog.remove("broken")
        MetadataCatalog.remove("broken")


class Interrupted(Exception):
    pass


def test_resuming_continues_the_learning_rate_schedule(config, tmp_path, monkeypatch):
    overrides = ["train.max_iter=16", "train.checkpointer.period=6"]
    run(config(*overrides, f"train.output_dir={tmp_path / 'whole'}"))
    expected = metrics(tmp_path / "whole", "lr")
    assert len(set(expected.values())) >= 3  # warm-up, full, a tenth

    stopped = [*overrides, f"train.output_dir={tmp_path / 'stopped'}"]
    with monkeypatch.context() as patch:
        original = Trainer.run_step

        def stop_after_eight(trainer):
            if trainer.iter == 8:
                raise Interrupted
            original(trainer)

        patch.setattr(Trainer, "run_step", stop_after_eight)
        with pytest.raises(Interrupted):
            run(config(*stopped))
    run(config(*stopped), resume=True)
    assert metrics(tmp_path / "stopped", "lr") == pytest.approx(expected)


def test_a_new_training_in_the_same_folder_does_not_mix_with_the_old_one(config, tmp_path):
    run(config("train.max_iter=3"))
    old = tmp_path / "model_final.pth"
    weights = torch.load(old)["model"]
    run(config("train.max_iter=2", "train.checkpointer.period=100", "optimizer.lr=0.0",
               f"train.init_checkpoint={old}"))  # fmt: skip
    assert sorted(metrics(tmp_path)) == [0, 1]
    assert sorted(metrics(tmp_path / "previous")) == [0, 1, 2]
    # it may begin with the weights that it sets aside
    name = "transformer.decoder.class_head.weight"
    assert torch.equal(torch.load(old)["model"][name], weights[name])
    assert torch.equal(torch.load(tmp_path / "previous" / old.name)["model"][name], weights[name])


def test_a_new_training_that_is_killed_early_does_not_resume_the_old_one(
    config, tmp_path, monkeypatch
):
    run(config("train.max_iter=3"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "run_step", lambda _: (_ for _ in ()).throw(Interrupted))
        run(config("train.max_iter=2"))
    _, steps = run(config("train.max_iter=2"), resume=True)
    assert steps == 2 and sorted(metrics(tmp_path)) == [0, 1]


def test_a_checkpoint_decides_over_the_config(config, tmp_path, caplog):
    run(config("train.max_iter=2"))
    run(config("train.max_iter=3", "optimizer.lr=0.123"), resume=True)
    assert "The config's lr 0.123 is not used" in caplog.text
    assert metrics(tmp_path, "lr")[2] < 0.01
    cfg = config("train.max_iter=4")
    cfg.optimizer = {
        "_target_": torch.optim.RMSprop, "params": cfg.optimizer.params, "lr": 0.001
    }  # fmt: skip
    with pytest.raises(InputError, match="is of another optimizer"):
        run(cfg, resume=True)


def test_too_few_classes_are_reported_before_the_first_step(config):
    with pytest.raises(InputError, match=r"'tiny_train' \(.*json\) has 3 classes, the model 2"):
        run(config("model.num_classes=2"))


def test_resuming_without_a_checkpoint_starts_from_the_beginning(config):
    _, steps = run(config("train.max_iter=1"), resume=True)
    assert steps == 1


def test_length_of_the_training_follows_the_epochs(config, tmp_path):
    # 32 images in batches of 8: 4 steps an epoch
    cfg = config("train.max_iter=null", "train.epochs=1.5", "train.checkpointer.period=null")
    _, steps = run(cfg)
    assert steps == 6
    assert (tmp_path / "model_0000003.pth").is_file()


def test_the_same_seed_gives_the_same_weights(config):
    first, second = (run(config("train.max_iter=3"))[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    other, _ = run(config("train.max_iter=3", "train.seed=1"))
    assert any(not torch.equal(first[k], v) for k, v in other.state_dict().items())


class Quadratic(torch.nn.Module):
    """Loss with the gradient (30, 40), of norm 50."""

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(2))

    def forward(self, _, num_boxes):
        return {"loss": (self.x * torch.tensor([30.0, 40.0])).sum()}


# the second with a gradient scaler, whose scale is none of the gradient's
@pytest.mark.parametrize("amp_dtype", [None, torch.float16])
@pytest.mark.parametrize("bound, expected", [(0.0, [-30, -40]), (5.0, [-3, -4]), (100, [-30, -40])])
def test_the_gradient_of_all_parameters_is_clipped_together(bound, expected, amp_dtype):
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(
        model, [[]], optimizer, device=torch.device("cpu"), max_grad_norm=bound,
        amp_dtype=amp_dtype,
    )  # fmt: skip
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
        assert storage.latest()["grad_norm"][0] == pytest.approx(50)
    assert model.x.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_training(config):
    cfg = config("train.max_iter=5", "optimizer.lr=1e30", "train.clip_grad.max_norm=0")
    with pytest.raises(FloatingPointError, match="no finite (loss|gradient)"):
        run(cfg)


def test_backbone_parameters_are_recognised_by_their_name():
    factor = backbone_lr_factor(0.1)
    assert factor("backbone.res2.0.conv1.weight") == 0.1
    assert factor("input_proj.weight") == 1.0


def test_resuming_continues_the_gradient_scaler(config, tmp_path):
    overrides = [
        "train.max_iter=6", "train.amp.enabled=True", "train.amp.dtype=float16",
        "train.checkpointer.period=3", "dataloader.train.total_batch_size=1",
        "train.pictures.tensorboard=0",
    ]  # fmt: skip
    whole, _ = run(config(*overrides))
    scale = torch.load(tmp_path / "model_final.pth")["trainer"]["grad_scaler"]
    # it has been at work before the stop
    before = torch.load(tmp_path / "model_0000002.pth")["trainer"]["grad_scaler"]
    assert before["scale"] < 65536
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    resumed, _ = run(config(*overrides), resume=True)
    assert torch.load(tmp_path / "model_final.pth")["trainer"]["grad_scaler"] == scale
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[k]) for k, value in resumed.state_dict().items())


def test_a_compiled_training_is_the_same(config, tmp_path, monkeypatch):
    """With Dynamo's graphs, but without generating code for them, which takes minutes."""
    compile_module, calls = torch.nn.Module.compile, []

    def compile_eagerly(module, **options):
        calls.append((type(module).__name__, options))
        compile_module(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        folder = tmp_path / str(compiled)
        run(
            config(
                f"train.output_dir={folder}",
                f"train.compile={compiled}",
                "train.ema.enabled=True",
                "train.activation_checkpointing.encoder=True",
                "train.activation_checkpointing.decoder=True",
                "train.pictures.tensorboard=1",
            )
        )
        losses.append(list(metrics(folder).values()))
    torch._dynamo.reset()
    assert calls == [("DABTransformer", {"dynamic": True})]
    # evaluations and pictures are not worth a graph of their own
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_channels_come_last_and_the_training_is_the_same(config, tmp_path):
    losses = {}
    for last in (True, False):
        folder = tmp_path / str(last)
        model, _ = run(config(f"train.output_dir={folder}", f"train.channels_last={last}"))
        weights = [w for w in model.parameters() if w.dim() == 4 and w.shape[2:] == (3, 3)]
        assert weights
        assert all(w.is_contiguous(memory_format=torch.channels_last) == last for w in weights)
        losses[last] = list(metrics(folder).values())
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept_unless_set_otherwise(in_process, tmp_path, monkeypatch, kept):
    calls = []

    def stop(*args, **kwargs):
        raise InputError("This is as far as the test goes.")

    monkeypatch.setattr("dab_detr.engine.main.keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr("dab_detr.engine.main.train", stop)
    arguments = ["--config-file", str(CONFIG), f"train.output_dir={tmp_path / 'out'}"]
    assert in_process(*arguments, *([] if kept else ["train.keep_freed_memory=False"])) == 1
    assert calls == (["kept"] if kept else [])


def test_compiling_without_a_compiler_is_refused(in_process, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    arguments = ["--config-file", str(CONFIG), f"train.output_dir={tmp_path / 'out'}"]
    assert in_process(*arguments, "train.compile=True") == 1
    assert "train.compile=True needs a C++ compiler" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
