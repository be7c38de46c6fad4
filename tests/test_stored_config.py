"""The config in a checkpoint is plain data, comes back as it was, and nothing in it is run."""

import copy
import json
import re
from functools import partial

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import transforms as T
from omegaconf import OmegaConf
from torch import nn

from dab_detr.config import get_config, list_configs
from dab_detr.errors import InputError
from dab_detr.stored_config import read_model_config, settings_to_store


def through_json(settings):
    """As a ``.safetensors`` file has it."""
    return json.loads(json.dumps(settings))


@pytest.mark.parametrize("name", list_configs())
def test_every_config_comes_back_as_it_was(name):
    cfg = get_config(name)
    stored = through_json(settings_to_store(cfg))["model_config"]
    read = read_model_config(stored, "file.pth")
    expected = OmegaConf.to_container(cfg.model, resolve=True)
    assert OmegaConf.to_container(read.model, resolve=True) == expected


@pytest.mark.parametrize("name", ["backbones/regnetx_4gf.py", "shapes/dab_detr_shapes.py"])
def test_the_same_model_is_built(name):
    cfg = get_config(name)
    read = read_model_config(through_json(settings_to_store(cfg))["model_config"], "file.pth")
    first, second = instantiate(cfg.model), instantiate(read.model)
    assert str(first) == str(second)
    assert {k: x.shape for k, x in first.state_dict().items()} == {
        k: x.shape for k, x in second.state_dict().items()
    }


def store(test=None, train=None):
    """What is stored of mappers with these augmentations."""
    cfg = get_config("dab_detr_r50_50ep.py")
    cfg.dataloader.train.mapper.augmentations = train or []
    if test is None:
        cfg.dataloader.test = None
    else:
        cfg.dataloader.test.mapper.augmentations = test
    return settings_to_store(cfg)


def test_how_images_are_read_is_stored():
    edge = partial(L(T.ResizeShortestEdge))
    assert store([edge(short_edge_length=800, max_size=1333)])["resize"] == {
        "short_edge": 800, "max_size": 1333,
    }  # fmt: skip
    assert store([edge(short_edge_length=[640])])["resize"] == {"short_edge": 640, "max_size": None}
    assert store([])["resize"] is None
    # another rule cannot be stored
    assert "resize" not in store([L(T.Resize)(shape=(64, 64))])
    assert "resize" not in store([edge(short_edge_length=9), L(T.RandomContrast)()])
    # without test data: the largest size of the training, whatever else is random
    sizes = edge(short_edge_length=[480, 640, 512], max_size=900, sample_style="choice")
    stored = store(None, [L(T.RandomFlip)(), sizes])
    assert stored["resize"] == {"short_edge": 640, "max_size": 900}
    assert stored["image_format"] == "RGB"


def test_what_is_not_data_is_not_stored(caplog):
    cfg = get_config("backbones/vitdet_b.py")
    cfg.model.backbone.net.norm_layer = partial(nn.LayerNorm, eps=1e-6)
    with caplog.at_level("WARNING", logger="dab_detr"):
        assert "model_config" not in settings_to_store(cfg)
    assert "model.backbone.net.norm_layer is functools.partial" in caplog.text


@pytest.fixture(scope="module")
def stored():
    return settings_to_store(get_config("shapes/dab_detr_shapes.py"))["model_config"]


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.run",
        "torch.hub.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.parallel.DistributedDataParallel",
        "detectron2.modeling.build_backbone",
        "detectron2.checkpoint.DetectionCheckpointer",
        "dab_detr.modeling.backbone.timm._create",
        "dab_detr.engine.main.main",
        "dab_detr.modeling.nothing",
        {"_target_": "os.getcwd"},
        7,
    ],
    ids=str,
)
def test_whatever_is_no_part_of_a_model_is_refused_by_its_name(stored, name):
    changes = (
        lambda c: c.update(_target_=name),
        lambda c: c["backbone"]["stages"][0].update(_target_=name),
        lambda c: c["backbone"]["stages"][0].update(block_class={"_name_": name}),
        lambda c: c.update(extra=[{"_target_": name, "command": "false"}]),
    )
    for change in changes:
        content = copy.deepcopy(stored)
        change(content)
        with pytest.raises(InputError, match=f"file.pth.*{re.escape(str(name))}.*give the config"):
            read_model_config(content, "file.pth")


@pytest.mark.parametrize(
    "content",
    ["text", None, [], {}, {"model": 1}, {"_target_": "dab_detr.modeling.DABDETR", 3: 4}],
    ids=str,
)
def test_what_is_no_config_is_refused(content):
    with pytest.raises(InputError, match="file.pth contains is refused"):
        read_model_config(content, "file.pth")


def test_references_are_refused(stored):
    content = copy.deepcopy(stored)
    content["num_classes"] = "${oc.env:HOME}"
    with pytest.raises(InputError, match="reference.*oc.env:HOME.*give the config"):
        read_model_config(content, "file.pth")


def test_timm_reads_no_other_file():
    cfg = get_config("backbones/timm_convnext_tiny.py")
    cfg.model.backbone.pretrained = True
    cfg.model.backbone.checkpoint_path = "evil.pth"
    cfg.model.backbone.pretrained_cfg = {"url": "http://127.0.0.1:9/evil.pth"}
    read = read_model_config(settings_to_store(cfg)["model_config"], "file.pth")
    assert set(read.model.backbone) == {"_target_", "name"}
