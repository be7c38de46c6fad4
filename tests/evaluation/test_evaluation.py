"""Evaluation of several data sets, by several evaluators, by unusual ones, and of nothing."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator

from dab_detr.config import get_config
from dab_detr.engine.training import train
from dab_detr.errors import InputError
from dab_detr.evaluation.coco_evaluator import BoxEvaluator
from dab_detr.evaluation.evaluate import evaluate, format_results, mean_precision

CONFIG = str(Path(__file__).parents[1] / "assets" / "own_config.py")


@pytest.fixture
def parts_of_tiny():
    """Registers two parts of the tiny validation data, when that has been registered."""

    def register():
        forget()
        for name, part in PARTS.items():
            metadata = MetadataCatalog.get("tiny_val")
            DatasetCatalog.register(name, lambda part=part: DatasetCatalog.get("tiny_val")[part])
            MetadataCatalog.get(name).set(thing_classes=metadata.thing_classes)

    def forget():
        for name in PARTS:
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)

    yield register
    forget()


PARTS = {"few": slice(0, 2), "rest": slice(2, None)}


@pytest.fixture
def config(datasets_root, monkeypatch, tmp_path, forget_tiny, parts_of_tiny):
    """A function that loads the config with overrides."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))

    def load(*overrides):
        forget_tiny()
        cfg = get_config(CONFIG, [f"train.output_dir={tmp_path}", *overrides])
        parts_of_tiny()
        return cfg

    return load


def run(cfg):
    default_setup(cfg, None)
    return train(cfg, instantiate(cfg.model), torch.device("cpu"), resume=False)


class MeanScore(DatasetEvaluator):
    """Knows nothing of data sets or folders; ``required`` has no default."""

    def __init__(self, required, result=None):
        self.required = required
        self.result = result

    def reset(self):
        self.scores = []

    def process(self, inputs, outputs):
        self.scores += [score for x in outputs for score in x["instances"].scores.tolist()]

    def evaluate(self):
        if self.result is not None:
            return self.result
        return {"bbox": {"score": np.float32(np.mean(self.scores)), "count": len(self.scores)}}


def test_each_of_several_data_sets_is_evaluated_by_itself(config, tmp_path):
    both = "dataloader.test.dataset.names=[few,rest]"
    results = run(config(both, "train.ema.enabled=True"))
    assert list(results) == ["bbox/few", "bbox/rest", "bbox_ema/few", "bbox_ema/rest"]
    written = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert written["bbox/few"]["AP"] == pytest.approx(results["bbox/few"]["AP"], nan_ok=True)
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {f"{task}/AP" for task in results} <= lines[-1].keys()
    assert "bbox/AP" not in lines[-1]
    # what is alone gets the same numbers, with the same weights, under the usual name
    for name, part in PARTS.items():
        images = [record["image_id"] for record in DatasetCatalog.get("tiny_val")[part]]
        for suffix in ("", "_ema"):
            file = tmp_path / f"inference{suffix}" / name / "coco_instances_results.json"
            assert {r["image_id"] for r in json.loads(file.read_text())} == set(images)
    alone = run(config("dataloader.test.dataset.names=rest"))
    assert alone["bbox"] == pytest.approx(results["bbox/rest"], nan_ok=True)


def test_pictures_curve_and_table_have_all_data_sets(in_process, parts_of_tiny, tmp_path, capsys):
    config = tmp_path / "both.py"
    config.write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        f"from dab_detr import get_config\n_base = get_config({CONFIG!r})\n"
        "model, dataloader, optimizer = _base.model, _base.dataloader, _base.optimizer\n"
        "lr_multiplier, train = _base.lr_multiplier, _base.train\n"
        "for _name in ('few', 'rest'):\n"
        "    DatasetCatalog.register(_name, lambda: DatasetCatalog.get('tiny_val')[:2])\n"
        "    MetadataCatalog.get(_name).thing_classes = ['rectangle', 'ellipse', 'triangle']\n"
        "dataloader.test.dataset.names = ['few', 'rest']\n"
    )
    out = tmp_path / "out"
    assert in_process(
        "--config-file", str(config), f"train.output_dir={out}", "train.max_iter=3",
        "train.eval_period=1", "train.pictures.count=1", "train.pictures.tensorboard=1",
    ) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert re.search(r"step 3/3 .*\| AP few \S+, rest \S+ \|", text)
    assert re.search(r"\| bbox/few +\|", text) and re.search(r"\| bbox/rest +\|", text)
    assert (out / "training_curve.png").is_file()
    for name in PARTS:
        assert len(list((out / "predictions" / name).glob("*.png"))) == 1


def test_weights_are_compared_by_the_mean_of_all_data_sets():
    nan = math.nan
    results = {
        "bbox/a": {"AP": 10.0, "AP50": 99.0},
        "bbox/b": {"AP": 30.0},
        "bbox/none_of_it": {"AP": nan},
        "segm/a": {"AP": 80.0},
        "score": 7.0,
        "bbox_ema/a": {"AP": 21.0},
        "bbox_ema/b": {"AP": 20.0},
    }
    assert mean_precision(results) == {"bbox": 20.0, "bbox_ema": 20.5}
    assert mean_precision({"bbox": {"AP": 4.0}}) == {"bbox": 4.0}
    assert math.isnan(mean_precision({"bbox/a": {"AP": nan}, "bbox/b": {"AP": nan}})["bbox"])
    assert mean_precision({"score": 7.0, "proposals": {"AR": 1.0}}) == {}


def test_several_evaluators_of_any_kind_work_together(config, tmp_path):
    cfg = config("dataloader.test.dataset.names=[few,rest]", "train.ema.enabled=True")
    cfg.dataloader.evaluator = [
        L(BoxEvaluator)(dataset_name="unused", output_dir=str(tmp_path / "boxes")),
        L(MeanScore)(required=1),
        L(MeanScore)(required=1, result={"accuracy": torch.tensor(0.5), "note": "fine"}),
        L(MeanScore)(required=1, result={"by_time": {"day": {"AP": 1.0}, "night": {"AP": 2.0}}}),
    ]
    results = run(cfg)
    tasks = [key for key in results if key.endswith("/few") and "_ema" not in key]
    assert tasks == ["bbox/few", "bbox_2/few", "accuracy/few", "by_time/few"]
    assert results["by_time/few"] == {"day/AP": 1.0, "night/AP": 2.0}
    assert "AP" in results["bbox/few"] and results["bbox_2/few"].keys() == {"score", "count"}
    assert results["accuracy_ema/rest"] == 0.5
    assert (tmp_path / "boxes_ema" / "few" / "coco_instances_results.json").is_file()
    table = format_results(results)
    assert "| bbox_2/rest " in table and "0.50" in table


def test_the_table_takes_numbers_by_their_names():
    coco = {"APl": 6.0, "AP-AP": 99.0, "AP50": 2.0, "AP90": 7.0, "AP": 1.0, "AP-cat": math.nan}
    others = {f"score-{i}": float(i) for i in range(20)}
    box, other, single = format_results({"bbox": coco, "tails": others, "one": 0.5}).split("\n\n")
    assert [x.split() for x in box.replace("|", " ").splitlines()[::2]] == [
        ["AP", "AP50", "APl", "AP90"],
        ["bbox", "1.00", "2.00", "6.00", "7.00"],
    ]
    # as many as a line has room for
    assert other.splitlines()[0].replace("|", " ").split() == [f"score-{i}" for i in range(12)]
    assert single.splitlines()[2].replace("|", " ").split() == ["one", "0.50"]


def test_an_evaluation_without_precision_keeps_no_best_weights(config, tmp_path):
    cfg = config()
    cfg.dataloader.evaluator = L(MeanScore)(required=1)
    assert run(cfg)["bbox"].keys() == {"score", "count"}
    assert not (tmp_path / "model_best.pth").exists()


@pytest.mark.parametrize(
    "evaluator, words",
    [
        (L(MeanScore)(), "dataloader.evaluator cannot be built.*required"),
        ([L(MeanScore)(required=1), L(MeanScore)()], "evaluator cannot be built.*required"),
        (L(torch.nn.Identity)(), "builds Identity, which is not an evaluator"),
        ("text", "dataloader.evaluator is text; an evaluator, a list"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_evaluators_that_cannot_be_built_are_refused_before_the_first_step(
    config, tmp_path, evaluator, words
):
    cfg = config()
    cfg.dataloader.evaluator = evaluator
    with pytest.raises(InputError, match=words):
        run(cfg)
    assert not (tmp_path / "metrics.json").exists()


def test_a_test_loader_that_cannot_be_built_is_refused_before_the_first_step(config, tmp_path):
    with pytest.raises(InputError, match="section dataloader.test cannot be built.*colour"):
        run(config("+dataloader.test.mapper.colour=3"))
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["dataloader.test=null"],
        # a data set that is not there is of no use then
        ["dataloader.evaluator=null", "dataloader.test.dataset.names=coco_2017_val"],
        ["dataloader.test=null", "dataloader.evaluator=null"],
    ],
    ids=" ".join,
)
def test_without_validation_a_training_says_so_once(in_process, tmp_path, arguments, capsys):
    code = in_process(
        "--config-file", CONFIG, f"train.output_dir={tmp_path}", "train.eval_period=1", *arguments
    )
    assert code == 0
    assert capsys.readouterr().out.count("Nothing is evaluated") == 1
    assert (tmp_path / "model_final.pth").is_file()
    assert not (tmp_path / "model_best.pth").exists()
    assert not (tmp_path / "evaluation.json").exists()


def test_an_empty_list_of_evaluators_evaluates_nothing(config, tmp_path):
    cfg = config()
    cfg.dataloader.evaluator = []
    assert run(cfg) == {}
    assert not (tmp_path / "evaluation.json").exists()


def test_a_reference_to_nothing_is_named(in_process, tmp_path, capsys):
    config = tmp_path / "lost.py"
    config.write_text(
        f"from dab_detr import get_config\n_base = get_config({CONFIG!r})\n"
        "model, dataloader, optimizer = _base.model, _base.dataloader, _base.optimizer\n"
        "lr_multiplier, train = _base.lr_multiplier, _base.train\n"
        "dataloader.evaluator.output_dir = '${nowhere}'\n"
    )
    assert in_process("--config-file", str(config), f"train.output_dir={tmp_path / 'out'}") == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.search("lost.py has an invalid reference: .*'nowhere' not found", last)


def test_training_data_alone_are_enough(own_data, in_process, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "--config-file", CONFIG, "--train-data", *own_data("train"), f"train.output_dir={out}",
        "train.pictures.count=2", "train.pictures.tensorboard=2",
    ]  # fmt: skip
    assert in_process(*command) == 0
    captured = capsys.readouterr()
    assert captured.out.count("Nothing is evaluated") == 1
    assert "model_final.pth" in captured.out and "model_best.pth " not in captured.out
    assert (out / "training_curve.png").is_file() and not (out / "predictions").exists()
    # going on, and an evaluation that has nothing to evaluate on
    assert in_process(*command, "train.max_iter=3", "--resume") == 0
    capsys.readouterr()
    weights = f"train.init_checkpoint={out / 'model_final.pth'}"
    assert in_process(*command, "--eval-only", weights) == 1
    assert "--eval-only needs data to evaluate on" in capsys.readouterr().err
    # data sets that are named all the same
    named = "dataloader.test.dataset.names=tiny_val"
    assert in_process(*command, named) == 1
    assert "The categories of" in capsys.readouterr().err


def test_the_documented_backend_is_a_key_of_the_configs(in_process, tmp_path, capsys):
    command = ["--config-file", CONFIG, f"train.output_dir={tmp_path}"]
    assert in_process(*command, "dataloader.evaluator.backend=pycocotools") == 0
    assert "faster-coco-eval" not in (tmp_path / "log.txt").read_text()
    assert in_process(*command, "dataloader.evaluator.backend=fastest") == 1
    assert "no evaluation backend 'fastest'" in capsys.readouterr().err


def host_evaluator(cfg, folder):
    cfg.dataloader.evaluator = L(COCOEvaluator)(dataset_name="few", output_dir=str(folder))
    cfg.dataloader.test.dataset.names = "few"
    return cfg


def test_the_hosts_evaluator_takes_data_without_a_file_in_a_second_run_too(config, tmp_path):
    # a second training of one process finds what the first has left in files and in the catalog
    for run_number in range(2):
        results = run(host_evaluator(config(), tmp_path / "inference"))
        assert "AP" in results["bbox"], run_number
        assert (tmp_path / "previous").exists() == bool(run_number)
    for folder in (tmp_path, tmp_path / "previous"):
        assert (folder / "inference" / "few_coco_format.json").is_file()
    assert not hasattr(MetadataCatalog.get("few"), "json_file")


def test_the_hosts_evaluator_does_not_read_the_truth_of_an_earlier_run(config, tmp_path):
    # an earlier run's, from when the data set had no objects
    stale = tmp_path / "inference" / "few_coco_format.json"
    stale.parent.mkdir()
    stale.write_text('{"info": {}, "images": [], "annotations": [], "categories": []}')
    cfg = host_evaluator(config(), stale.parent)
    model = instantiate(cfg.model)
    found = evaluate(cfg, model)["bbox"]
    cfg.dataloader.evaluator = L(BoxEvaluator)(dataset_name="few")
    assert found == pytest.approx(evaluate(cfg, model)["bbox"], nan_ok=True)
    truth = json.loads(stale.read_text())
    assert [x["id"] for x in truth["images"]] == [x["image_id"] for x in DatasetCatalog.get("few")]


def test_a_folder_of_an_evaluator_is_needed_before_the_first_step(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="output_dir is .*inference, but .*file is not writable"):
        run(config(f"dataloader.evaluator.output_dir={tmp_path / 'file' / 'inference'}"))
    assert not (tmp_path / "metrics.json").exists()
