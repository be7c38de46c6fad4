"""A class of the data is the same class for the model, in the evaluation and in what is written."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from dab_detr.config import get_config
from dab_detr.data.datasets import register_custom_coco
from dab_detr.data.validation import check_datasets
from dab_detr.evaluation.evaluate import evaluate
from dab_detr.modeling import DABDETR

CONFIG = str(Path(__file__).parents[1] / "assets" / "own_config.py")
# by the file's ids, which are neither in order nor without gaps
NAMES = {90: "bus", 7: "ant", 33: "cat", 8: "ant hill"}
# image, category, box
OBJECTS = [
    (1, 90, [8, 5, 16, 12]),
    (1, 7, [30, 20, 16, 12]),
    (2, 33, [8, 5, 20, 30]),
    (3, 8, [1, 1, 40, 40]),
    (3, 33, [45, 30, 10, 10]),
]


def named(content):
    content["categories"] = [{"id": number, "name": name} for number, name in NAMES.items()]
    content["annotations"] = [
        {"id": k, "image_id": image, "category_id": category, "bbox": box}
        for k, (image, category, box) in enumerate(OBJECTS)
    ]


@pytest.fixture
def data(own_data, forget_tiny):
    return own_data("train", named), own_data("val", named)


@pytest.fixture
def fed(monkeypatch):
    """What the model is given to learn from: (file, name of the class)."""
    seen = set()
    forward = DABDETR.forward

    def watched(self, batched_inputs, **arguments):
        if self.training:
            names = MetadataCatalog.get("custom_train").thing_classes
            for sample in batched_inputs:
                for label in sample["instances"].gt_classes.tolist():
                    seen.add((Path(sample["file_name"]).name, names[label]))
        return forward(self, batched_inputs, **arguments)

    monkeypatch.setattr(DABDETR, "forward", watched)
    return seen


def test_the_model_learns_the_classes_of_the_file(data, fed, in_process, tmp_path):
    train, val = data
    code = in_process(
        "--config-file", CONFIG, "--train-data", *train, "--val-data", *val, "train.max_iter=3",
        f"train.output_dir={tmp_path / 'out'}", "dataloader.train.mapper.augmentations=[]",
    )  # fmt: skip
    assert code == 0
    assert fed == {(f"{image}.png", NAMES[category]) for image, category, _ in OBJECTS}
    # what the model's outputs mean is said by the file, in the order of its ids
    assert MetadataCatalog.get("custom_train").thing_classes == [NAMES[k] for k in sorted(NAMES)]
    head = torch.load(tmp_path / "out" / "model_final.pth")["model"]
    assert len(head["transformer.decoder.class_head.bias"]) == len(NAMES)


class Finds(nn.Module):
    """Stands for a model that finds given objects and nothing else."""

    def __init__(self, objects):
        super().__init__()
        self._found = defaultdict(list)
        for image, name, box in objects:
            self._found[f"{image}.png"].append((name, box))

    def forward(self, batched_inputs):
        order = [NAMES[k] for k in sorted(NAMES)]
        outputs = []
        for sample in batched_inputs:
            found = self._found[Path(sample["file_name"]).name]
            boxes = torch.tensor([box for _, box in found], dtype=torch.float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances = Instances(
                (48, 64),
                pred_boxes=Boxes(boxes),
                scores=torch.full((len(found),), 0.9),
                pred_classes=torch.tensor([order.index(name) for name, _ in found]).long(),
            )
            outputs.append({"instances": instances})
        return outputs


@pytest.mark.parametrize("exchanged", [{}, {"ant": "bus", "bus": "ant"}], ids=["right", "wrong"])
def test_a_class_is_evaluated_as_what_the_file_calls_it(data, tmp_path, monkeypatch, exchanged):
    cfg = get_config(CONFIG)
    cfg.train.output_dir = str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    before = OmegaConf.to_container(cfg, resolve=False)
    own = register_custom_coco(cfg, *data, set_classes=True)
    assert OmegaConf.to_container(cfg, resolve=False) == before
    cfg = own
    check_datasets(cfg, ("train", "test"))
    objects = [(image, exchanged.get(NAMES[k], NAMES[k]), box) for image, k, box in OBJECTS]
    # what stands for a model has nothing that could be made faster
    monkeypatch.setattr("dab_detr.evaluation.evaluate.fast_copy", lambda model: model)
    metrics = evaluate(cfg, Finds(objects))["bbox"]
    for name in NAMES.values():
        assert metrics[f"AP-{name}"] == pytest.approx(0 if name in exchanged else 100), name
    written = json.loads(
        (tmp_path / "out" / "inference" / "coco_instances_results.json").read_text()
    )
    ids = {name: number for number, name in NAMES.items()}
    assert sorted((r["image_id"], r["category_id"], r["bbox"]) for r in written) == sorted(
        (image, ids[name], box) for image, name, box in objects
    )
