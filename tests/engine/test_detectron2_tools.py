"""Detectron2's own programs for LazyConfigs, train and analyse, run this project's configs.

They are not part of its package: what they do with a config is written again here.
"""

import json
import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    parameter_count_table,
)
from fvcore.nn import flop_count_table

TINY = "tests/assets/tiny_config.py"
# the published recipe, made small enough for a test
SMALL_R50 = [
    "dataloader.train.dataset.names=tiny_train",
    "dataloader.train.mapper.augmentations=[]",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.dataset.names=tiny_val",
    "dataloader.test.mapper.augmentations=[]",
    "dataloader.test.num_workers=0",
    "model.transformer.encoder.num_layers=1",
    "model.transformer.decoder.num_layers=2",
    "train.init_checkpoint=",
]
CONFIGS = {
    "shapes": (TINY, []),
    "published": ("configs/dab_detr_r50_50ep.py", SMALL_R50),
}
# what these programs take from the config as it stands, and train_net.py decides if it is left open
PLAIN = [
    "train.device=cpu",
    "train.max_iter=2",
    "train.eval_period=2",
    "train.checkpointer.period=2",
    "train.log_period=1",
]


@pytest.fixture
def load(datasets_root, monkeypatch, tmp_path, tiny_shapes, forget_tiny, pytestconfig):
    """A function that loads one of ``CONFIGS`` as Detectron2 does."""

    def call(case, *overrides):
        path, own = CONFIGS[case]
        if path == TINY:
            forget_tiny()
        cfg = LazyConfig.load(str(pytestconfig.rootpath / path))
        overrides = [*own, *PLAIN, f"train.output_dir={tmp_path}", *overrides]
        return LazyConfig.apply_overrides(cfg, overrides)

    return call


def evaluate(cfg, model):
    loader = instantiate(cfg.dataloader.test)
    results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    print_csv_format(results)
    return results


def train(cfg, resume=False):
    """The training of tools/lazyconfig_train_net.py; returns the model."""
    default_setup(cfg, None)
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    kind = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = kind(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter),
                period=cfg.train.log_period,
            ),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return model


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("case", CONFIGS)
def test_its_training_loop_trains_and_evaluates(load, case, tmp_path):
    model = train(load(case))
    rows = metrics(tmp_path)
    losses = {x["iteration"]: x["total_loss"] for x in rows if "total_loss" in x}
    assert set(losses) >= {0, 1} and all(map(math.isfinite, losses.values()))
    assert any("bbox/AP" in row for row in rows)
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_its_training_is_resumed_and_evaluated_by_this_project(load, tmp_path, in_process):
    first = train(load("shapes"))
    before = {name: value.clone() for name, value in first.state_dict().items()}
    last = train(load("shapes", "train.max_iter=4", "train.eval_period=4"), resume=True)
    changed = [k for k, v in last.state_dict().items() if not torch.equal(v, before[k])]
    assert any(name.startswith("transformer.") for name in changed)
    rows = metrics(tmp_path)
    assert {row["iteration"] for row in rows} >= {0, 1, 2, 3}
    wanted = next(row["bbox/AP50"] for row in reversed(rows) if "bbox/AP50" in row)
    code = in_process(
        "--config-file", TINY, "--eval-only", f"train.output_dir={tmp_path / 'own'}",
        f"train.init_checkpoint={tmp_path / 'model_final.pth'}",
    )  # fmt: skip
    assert code == 0
    written = json.loads((tmp_path / "own" / "evaluation.json").read_text())["results"]["bbox"]
    assert written["AP50"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Detectron2's AMPTrainer needs a GPU")
def test_its_mixed_precision_trains(load, tmp_path):
    train(load("shapes", "train.device=cuda", "train.amp.enabled=True"))
    assert math.isfinite(metrics(tmp_path)[-1]["bbox/AP"])


@pytest.mark.parametrize("case", CONFIGS)
def test_its_analysis_counts_operations_parameters_and_structure(load, case):
    """The four tasks of tools/analyze_model.py, the first against the shapes of convolutions."""
    cfg = load(case, "dataloader.test.batch_size=1")
    model = instantiate(cfg.model).to(cfg.train.device).eval()
    data = next(iter(instantiate(cfg.dataloader.test)))
    convolved = []

    def count(module, inputs, output):
        weights = module.weight[0].numel()
        convolved.append(output.numel() * weights)

    handles = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model(data)
    for handle in handles:
        handle.remove()

    flops = FlopCountAnalysis(model, data)
    by_operator = flops.by_operator()
    assert by_operator["conv"] == sum(convolved) > 0
    assert by_operator["linear"] > 0 and flops.total() == sum(by_operator.values())
    assert "transformer.decoder" in flop_count_table(flops)
    assert activation_count_operators(model, data)["conv"] > 0
    total = sum(parameter.numel() for parameter in model.parameters())
    table = parameter_count_table(model, max_depth=5)
    assert f"{total / 1e6:.3f}M" in table or f"{total / 1e6:.1f}M" in table
    assert str(model).startswith("DABDETR(")
