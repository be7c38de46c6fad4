"""A checkpoint is enough to get its model back, with class names and the images it wants."""

from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from dab_detr import __version__, get_config, load_model
from dab_detr.checkpoint.classes import COCO_NAMES, RAW_COCO_NAMES
from dab_detr.checkpoint.conversion import from_dab_detr
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.writing import write_hf, write_state
from dab_detr.errors import InputError
from dab_detr.inference import load

CONFIG = Path(__file__).parents[1] / "assets" / "tiny_config.py"
SHAPES = ["rectangle", "ellipse", "triangle"]
IMAGE = [{"image": torch.arange(3 * 64 * 80).view(3, 64, 80) % 251}]


@torch.no_grad()
def detections(model):
    found = model(IMAGE)[0]["instances"]
    return torch.cat((found.scores[:, None], found.pred_boxes.tensor), dim=1)


def assert_as_trained(loaded):
    assert loaded.class_names == SHAPES
    assert (loaded.short_edge, loaded.max_size, loaded.image_format) == (72, 96, "RGB")
    assert not loaded.model.training
    assert loaded.model.transformer.queries.temperature == 30
    assert loaded.model.pixel_mean.flatten().tolist() == [100, 110, 120]


@pytest.mark.parametrize("name", ["model_0000000.pth", "model_best.pth", "model_final.pth"])
def test_every_file_of_a_training_is_enough(trained, name):
    loaded = load(trained / name, device="cpu")
    assert_as_trained(loaded)
    assert read_checkpoint(trained / name)["description"]["package_version"] == __version__
    for key, tensor in read_checkpoint(trained / name)["model"].items():
        assert torch.equal(loaded.model.state_dict()[key], tensor)


def test_the_config_that_a_training_wrote_gives_the_same_model(trained):
    path = str(trained / "model_final.pth")
    cfg = get_config(trained / "config.yaml")
    built = instantiate(cfg.model).eval()
    built.load_state_dict(read_checkpoint(path)["model"])
    for config in (None, trained / "config.yaml", cfg):
        loaded = load(path, config, "cpu")
        assert_as_trained(loaded)
        assert torch.equal(detections(loaded.model), detections(built))
    assert torch.equal(detections(load_model(path, device="cpu")), detections(built))


def test_a_given_config_takes_precedence(trained):
    overrides = ["model.num_select=5", "dataloader.test.mapper.image_format=BGR",
                 "dataloader.test.mapper.augmentations=[]"]  # fmt: skip
    cfg = get_config(trained / "config.yaml", overrides)
    loaded = load(trained / "model_final.pth", cfg)
    assert len(detections(loaded.model.cpu())) == 5
    assert (loaded.short_edge, loaded.max_size, loaded.image_format) == (None, None, "BGR")
    assert loaded.class_names == SHAPES


@pytest.mark.parametrize("name", ["converted.pth", "converted.safetensors"])
@pytest.mark.parametrize("options", [[], ["--ema"]], ids=str)
def test_a_conversion_keeps_what_the_file_says(trained, tmp_path, load_tool, name, options):
    convert = load_tool("convert_checkpoint").main
    source = trained / "model_final.pth"
    assert convert([str(source), str(tmp_path / name), *options]) == 0
    assert_as_trained(loaded := load(tmp_path / name, device="cpu"))
    content = read_checkpoint(source)
    weights = content["model"]
    if options:
        average = content["trainer"]["hooks"]["EMAHook"]
        assert not torch.equal(average["module.input_proj.weight"], weights["input_proj.weight"])
        weights = {key: average[f"module.{key}"] for key in weights}
    for key, tensor in weights.items():
        assert torch.equal(loaded.model.state_dict()[key], tensor)
    # other classes
    other = tmp_path / f"five_{name}"
    assert convert([str(source), str(other), "--num-classes", "5"]) == 0
    loaded = load(other, device="cpu")
    assert loaded.model.num_classes == 5 and loaded.class_names is None


@pytest.fixture(scope="module")
def small_config():
    """Of a model for COCO's 80 classes that every layout can express."""
    cfg = get_config("dab_detr_r50_50ep.py")
    cfg.model.transformer.d_model = 32
    cfg.model.transformer.encoder.update(num_layers=1, num_heads=4, ffn_dim=48)
    cfg.model.transformer.decoder.num_layers = 2
    return cfg


@pytest.mark.parametrize("layout", ["official", "hf"])
def test_published_layouts_have_cocos_classes_and_need_a_config(tmp_path, small_config, layout):
    cfg = get_config("dab_detr_r50_50ep.py")
    cfg.model = small_config.model
    raw = get_config("dab_detr_r50_50ep.py")
    raw.model = small_config.model.copy()
    raw.model.num_classes = 91
    state = instantiate(raw.model).state_dict()
    path = tmp_path / layout
    if layout == "hf":
        write_hf(state, path, num_heads=4)
    else:
        path = path.with_suffix(".pth")
        write_state(from_dab_detr(state, "official"), path)
    with pytest.raises(InputError, match=f"{path}.*does not say which model.*give the config"):
        load(path)
    loaded = load(path, cfg, "cpu")
    assert loaded.class_names == list(COCO_NAMES)
    assert loaded.model.num_classes == 80
    assert (loaded.short_edge, loaded.max_size) == (800, 1333)
    assert load(path, raw, "cpu").class_names == list(RAW_COCO_NAMES)


def test_a_file_without_class_names_gets_those_of_the_configs_data(tmp_path, small_config):
    torch.save({"model": instantiate(small_config.model).state_dict()}, tmp_path / "old.pth")
    assert load(tmp_path / "old.pth", small_config).class_names == list(COCO_NAMES)


def test_code_in_a_stored_config_is_not_run(trained, tmp_path):
    content = torch.load(trained / "model_best.pth")
    content["description"]["model_config"]["backbone"] = {
        "_target_": "os.system",
        "command": f"touch {tmp_path / 'run'}",
    }
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="evil.pth contains is refused.*'os.system'.*give the con"):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "run").exists()
    assert_as_trained(load(tmp_path / "evil.pth", trained / "config.yaml"))


def test_an_unknown_rule_for_the_size_is_said(trained, tmp_path, caplog):
    content = torch.load(trained / "model_best.pth")
    del content["description"]["resize"], content["description"]["image_format"]
    torch.save(content, tmp_path / "other.pth")
    with caplog.at_level("WARNING", logger="dab_detr"):
        loaded = load(tmp_path / "other.pth")
    assert (loaded.short_edge, loaded.max_size, loaded.image_format) == (800, 1333, "RGB")
    assert "not known how images are resized" in caplog.text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("missing.pth",), "no checkpoint file missing.pth"),
        (("FILE", "missing.py"), "no config file missing.py"),
        (("FILE", "common/train.py"), "no section 'model'"),
        (("FILE", "dab_detr_r50_50ep.py"), "does not fit the model"),
        (("FILE", None, "tpu3"), "no device 'tpu3'"),
    ],
    ids=str,
)
def test_mistakes_get_a_sentence(trained, arguments, words):
    file = str(trained / "model_best.pth")
    with pytest.raises(InputError, match=words):
        load(*(file if x == "FILE" else x for x in arguments))
