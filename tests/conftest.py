"""What several test modules share: small models and a small data set."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from detections import as_after_training
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.structures import Boxes, Instances
from PIL import Image

from dab_detr.data.shapes import ShapesSpec, register_shapes
from dab_detr.engine.main import main
from dab_detr.flat_config import PLACES, model_config
from dab_detr.modeling import DABDETR

SMALL = {
    "d_model": 32,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "ffn_dim": 64,
    "num_queries": 10,
}
TINY_CONFIG = Path(__file__).parent / "assets" / "tiny_config.py"


@pytest.fixture(scope="session", autouse=True)
def quick_spawn():
    """Processes that tests spawn need not import everything again."""
    with programs.quick_spawn():
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def small_transformer():
    """A function that builds a small DABTransformer, with further settings by their flat names."""

    def build(**settings):
        cfg = model_config(**{"num_classes": 5, **SMALL, **settings})
        transformer = instantiate(cfg.transformer)
        transformer.reset_parameters()
        return transformer

    return build


@pytest.fixture
def small_model():
    """A function that builds a small DABDETR, or a ``kind`` of it, for 3 classes.

    Settings go by their flat names; whatever is none is an argument of the model.
    """

    def build(kind=DABDETR, **settings):
        backbone = ResNet(
            BasicStem(3, 16, norm="BN"),
            [
                ResNet.make_stage(
                    BasicBlock,
                    1,
                    in_channels=16,
                    out_channels=24,
                    stride_per_block=[2],
                    norm="BN",
                )
            ],
            out_features=["stem", "res2"],
        )
        settings = {"num_classes": 3, **SMALL, "num_decoder_layers": 2, **settings}
        flat = {name: settings.pop(name) for name in list(settings) if name in PLACES}
        cfg = model_config(in_features=flat.pop("in_features", ["res2"]), **flat)
        parts = {"backbone": backbone, "criterion": None, **settings}
        arguments = {name: instantiate(value) for name, value in cfg.items() if name not in parts}
        del arguments["_target_"]
        return kind(**parts, **arguments)

    return build


@pytest.fixture
def detector(small_model):
    """A small model with heads and statistics as after a training: its outputs depend on all."""
    return as_after_training(small_model(num_queries=20, num_encoder_layers=1))


@pytest.fixture
def batch():
    """A function that makes a batch of random images with the given sizes and object counts."""

    def build(sizes=((64, 64), (48, 80)), counts=(3, 2), num_classes=3):
        inputs = []
        for (height, width), count in zip(sizes, counts):
            corner = torch.rand(count, 2) * 0.5
            boxes = torch.cat((corner, corner + 0.1 + torch.rand(count, 2) * 0.4), dim=1)
            boxes = boxes * torch.tensor([width, height, width, height])
            instances = Instances(
                (height, width),
                gt_boxes=Boxes(boxes),
                gt_classes=torch.randint(num_classes, (count,)),
            )
            image = torch.randint(256, (3, height, width), dtype=torch.uint8)
            inputs.append({"image": image, "instances": instances})
        return inputs

    return build


@pytest.fixture(scope="session")
def datasets_root(tmp_path_factory):
    """The folder that DETECTRON2_DATASETS names during the tests."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def tiny_shapes(datasets_root, monkeypatch, forget_tiny):
    """Registers ``tiny_train`` (32 images) and ``tiny_val`` (8 images) of 64 pixels."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))
    register_shapes("tiny", ShapesSpec(num_train=32, num_val=8, size=64, max_objects=3))
    return "tiny_train", "tiny_val"


@pytest.fixture
def forget_tiny():
    """A function that lets the tiny config be loaded again; what it registered goes at the end."""

    def forget():
        for name in ("tiny_train", "tiny_val"):
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)

    yield forget
    forget()


@pytest.fixture
def in_process(datasets_root, monkeypatch, forget_tiny):
    """A function that runs train_net.py's arguments in this process; returns the exit code."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))

    def call(*arguments):
        forget_tiny()
        return main(arguments)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory, datasets_root):
    """The folder of a training with EMA, whose test images are resized to 72 pixels."""
    folder = tmp_path_factory.mktemp("trained")
    resize = (
        "[{_target_: detectron2.data.transforms.ResizeShortestEdge,"
        " short_edge_length: 72, max_size: 96}]"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets_root))
        code = main(
            ["--config-file", str(TINY_CONFIG), f"train.output_dir={folder}", "train.max_iter=2",
             "train.pictures.count=0", "train.pictures.tensorboard=0", "train.ema.enabled=True",
             "train.ema.decay=0.5", "train.checkpointer.period=1",
             "model.transformer.queries.temperature=30",
             "model.pixel_mean=[100.0,110.0,120.0]",
             f"dataloader.test.mapper.augmentations={resize}"]
        )  # fmt: skip
    assert code == 0
    # what the files say has to be enough
    for name in ("tiny_train", "tiny_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    return folder


@pytest.fixture
def own_data(tmp_path):
    """A function that writes ``<part>.json`` and images of 64 x 48 pixels into ``<part>/``.

    It is given a function that changes the content before it is written, and returns the folder of
    images and the file, as the command line takes them.
    """

    def write(part, change=None):
        folder = tmp_path / part
        folder.mkdir(exist_ok=True)
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2, 3, 4)
            ],
            # the third has two boxes, the fourth none
            "annotations": [
                {"id": 10 + i, "image_id": image, "category_id": 5, "bbox": [8 * i, 5, 16, 12]}
                for i, image in enumerate((1, 2, 3, 3))
            ],
            "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        }
        for image in content["images"]:
            pixels = np.random.RandomState(image["id"]).randint(0, 256, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
        if change is not None:
            content = change(content) or content
        file = tmp_path / f"{part}.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(folder), str(file)

    yield write
    for name in ("custom_train", "custom_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def load_tool():
    """A function that imports a program of tools/ by its name."""

    def load(name):
        path = Path(__file__).parents[1] / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
