"""COCO 2017 in Detectron2's layout, as the configs have it: a miniature with what makes it hard."""

import json
import os

import numpy as np
import pytest
from detectron2.config import get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin, register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.engine import DefaultTrainer
from PIL import Image

from dab_detr import add_dab_detr_config
from dab_detr.config import get_config
from dab_detr.evaluation.coco_evaluator import BoxEvaluator

NAMES = "coco_2017_train", "coco_2017_val"
CATEGORIES = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
HEIGHT, WIDTH = 48, 64
CROWD = {"counts": [10, 20, HEIGHT * WIDTH - 30], "size": [HEIGHT, WIDTH]}


def content(part):
    """Five images: every category once, with outlines of all kinds, and a crowd region in each."""
    images = [
        {"id": 397133 + 9 * k, "file_name": f"{k:012}.jpg", "height": HEIGHT, "width": WIDTH}
        for k in range(5)
    ]
    outlines = [[[5, 5, 25, 5, 25, 20]], [], [[1, 2, 3, 4]], [[5, 5, 25, 5, 25, 20], [1, 2, 3, 4]]]
    annotations = []
    for k, category in enumerate(CATEGORIES):
        annotations.append(
            {
                "id": 1768 + k,
                "image_id": images[k % 5]["id"],
                "category_id": category["id"],
                "bbox": [k % 16 + 0.5, k % 9, 24.25, 16],
                "area": 150.5 + k,
                "iscrowd": 0,
                "segmentation": outlines[k % 4],
            }
        )
    for k, image in enumerate(images):
        annotations.append(
            {
                "id": 900100000000 + k,
                "image_id": image["id"],
                "category_id": CATEGORIES[k]["id"],
                "bbox": [0, 10, 60, 30],
                "area": 20,
                "iscrowd": 1,
                "segmentation": CROWD,
            }
        )
    return {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES}


@pytest.fixture
def coco(tmp_path):
    """The data set in the place of what Detectron2 registered at its import; returns its parts."""
    before = {name: (DatasetCatalog[name], MetadataCatalog.get(name)) for name in NAMES}
    contents = {}
    for name in NAMES:
        folder, file = builtin._PREDEFINED_SPLITS_COCO["coco"][name]
        root, path = tmp_path / "datasets" / folder, tmp_path / "datasets" / file
        root.mkdir(parents=True)
        path.parent.mkdir(exist_ok=True)
        contents[name] = content(name)
        path.write_text(json.dumps(contents[name]))
        for image in contents[name]["images"]:
            pixels = np.random.RandomState(image["id"]).randint(0, 256, (HEIGHT, WIDTH, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / image["file_name"])
        forget(name)
        metadata = builtin._get_builtin_metadata("coco")
        register_coco_instances(name, metadata, str(path), str(root))
    yield contents
    for name, (load, metadata) in before.items():
        forget(name)
        DatasetCatalog.register(name, load)
        MetadataCatalog[name] = metadata


def forget(name):
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


CONFIG = os.path.join(os.path.dirname(__file__), "..", "assets", "coco_config.py")


def test_the_configs_data_sections_train_and_evaluate(coco, in_process, tmp_path):
    out = tmp_path / "out"
    assert in_process("--config-file", CONFIG, f"train.output_dir={out}") == 0
    log = (out / "log.txt").read_text()
    assert "Data for training: 5 images with 80 boxes." in log
    assert "Data for evaluation (coco_2017_val): 5 images with 80 boxes." in log
    results = json.loads((out / "evaluation.json").read_text())["results"]["bbox"]
    assert {f"AP-{category['name']}" for category in CATEGORIES} <= results.keys()
    written = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    assert {r["image_id"] for r in written} == {i["id"] for i in coco[NAMES[1]]["images"]}
    assert {r["category_id"] for r in written} <= {c["id"] for c in CATEGORIES}


def test_a_loop_of_ones_own_reads_every_object(coco, tmp_path, forget_tiny):
    """As Detectron2's tools/lazyconfig_train_net.py does: config, loaders, evaluator."""
    cfg = get_config(CONFIG)
    records = instantiate(cfg.dataloader.train.dataset)
    wanted = {}
    for annotation in coco[NAMES[0]]["annotations"]:
        name = next(c["name"] for c in CATEGORIES if c["id"] == annotation["category_id"])
        entry = annotation["bbox"], name, annotation["iscrowd"], annotation["area"]
        wanted.setdefault(annotation["image_id"], []).append(entry)
    classes = MetadataCatalog.get(NAMES[0]).thing_classes
    found = {
        record["image_id"]: [
            (a["bbox"], classes[a["category_id"]], a["iscrowd"], a["area"])
            for a in record["annotations"]
        ]
        for record in records
    }
    assert found == wanted
    assert len(instantiate(cfg.dataloader.test)) == 5
    cfg.train.output_dir = str(tmp_path)
    assert isinstance(instantiate(cfg.dataloader.evaluator), BoxEvaluator)


def test_detectron2s_default_trainer_trains_and_evaluates(coco, tmp_path, pytestconfig):
    class Trainer(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return BoxEvaluator(dataset_name)

    cfg = get_cfg()
    add_dab_detr_config(cfg)
    cfg.merge_from_file(str(pytestconfig.rootpath / "configs" / "yaml" / "dab_detr_r50.yaml"))
    assert (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) == NAMES
    cfg.merge_from_list(
        ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18]
        + ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.DAB_DETR.D_MODEL", 32]
        + ["MODEL.DAB_DETR.NUM_HEADS", 4, "MODEL.DAB_DETR.NUM_ENCODER_LAYERS", 1]
        + ["MODEL.DAB_DETR.NUM_DECODER_LAYERS", 1, "MODEL.DAB_DETR.FFN_DIM", 64]
        + ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "DATALOADER.NUM_WORKERS", 0]
        + ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "OUTPUT_DIR", str(tmp_path)]
    )
    trainer = Trainer(cfg)
    trainer.train()
    results = trainer.test(cfg, trainer.model)["bbox"]
    assert {f"AP-{category['name']}" for category in CATEGORIES} <= results.keys()
