"""Published weights by name, wherever a checkpoint is taken; random ones from a server here."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from huggingface_hub import constants

from dab_detr import Predictor, get_config, load_model
from dab_detr.checkpoint import Checkpointer, zoo
from dab_detr.checkpoint.classes import COCO_NAMES, COCO_ROWS
from dab_detr.checkpoint.conversion import from_dab_detr
from dab_detr.checkpoint.layouts import LAYOUTS
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.writing import write_hf
from dab_detr.cli.main import main
from dab_detr.inference import load

CONFIG = str(Path(__file__).parents[1] / "assets" / "tiny_config.py")
SHAPES = ["rectangle", "ellipse", "triangle"]
CLASS_HEAD = "transformer.decoder.class_head."


def random_model(config, num_classes):
    """With a class head that shows which row is which."""
    model = instantiate(get_config(config, [f"model.num_classes={num_classes}"]).model)
    with torch.no_grad():
        model.transformer.decoder.class_head.bias.copy_(torch.arange(num_classes))
    return model


def publish_folder(hub, repo, folder):
    for name in ("model.safetensors", "config.json"):
        hub.files[f"/{repo}/{name}"] = (folder / name).read_bytes()


def assert_same_weights(model, source, rows):
    """As the source's, with these rows of its class head."""
    expected = source.state_dict()
    for key, tensor in model.state_dict().items():
        wanted = expected[key][list(rows)] if key.startswith(CLASS_HEAD) else expected[key]
        assert torch.equal(tensor, wanted), key


def test_a_name_is_all_that_a_full_size_model_needs(hub, tmp_path, monkeypatch, capsys):
    source = random_model("dab_detr_r50_50ep.py", 91)
    write_hf(source.state_dict(), tmp_path / "hf")
    publish_folder(hub, "IDEA-Research/dab-detr-resnet-50", tmp_path / "hf")
    assert "| dab_detr_r50 " in _zoo(capsys, is_cached={})
    loaded = load("dab_detr_r50", device="cpu")
    assert_same_weights(loaded.model, source, COCO_ROWS)
    assert loaded.class_names == list(COCO_NAMES)
    assert (loaded.short_edge, loaded.max_size, loaded.image_format) == (800, 1333, "RGB")
    assert not loaded.model.training
    _zoo(capsys, is_cached={"dab_detr_r50"})
    # converted, it says the same by itself, without a network
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for options, count in ([], 91), (["--num-classes", "80"], 80):
        target = tmp_path / f"{count}.safetensors"
        assert main(["convert", "dab_detr_r50", str(target), *options]) == 0
        own = load(target, device="cpu")
        assert own[2:] == loaded[2:]
        assert own.model.num_classes == count
        assert [x for x in own.class_names if x] == list(COCO_NAMES)
        assert_same_weights(own.model, source, range(91) if count == 91 else COCO_ROWS)


def _zoo(capsys, is_cached):
    """What ``dab-detr zoo`` prints, after a look at what it says of the cache."""
    capsys.readouterr()
    assert main(["zoo"]) == 0
    text = capsys.readouterr().out
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert {row[0] for row in rows} == set(zoo.PUBLISHED)
    assert {row[0] for row in rows if row[3] == "yes"} == set(is_cached)
    return text


def publish_detrex(server, monkeypatch, name, source):
    """Lets the name stand for this model, in detrex's layout."""
    state = from_dab_detr(source.state_dict(), LAYOUTS["detrex"])
    if "dc5" in name:
        # detrex takes torchvision's ResNet for it
        backbone = {k.removeprefix("backbone."): x for k, x in state.items() if "backbone." in k}
        state = {k: x for k, x in state.items() if "backbone." not in k}
        state |= {f"backbone.body.{torchvision_name(k)}": x for k, x in backbone.items()}
    file = io.BytesIO()
    torch.save({"model": state}, file)
    server.files["/weights.pth"] = file.getvalue()
    changed = zoo.Published(zoo.PUBLISHED[name].config, f"{server.url}/weights.pth", 43.3, 1)
    monkeypatch.setitem(zoo.PUBLISHED, name, changed)


@pytest.mark.parametrize(
    "name, count",
    [("detrex_dab_detr_r50", 80), ("detrex_dab_detr_r50", 91), ("detrex_dab_detr_r50_dc5", 80)],
)
def test_detrexs_files_have_cocos_classes(server, cache, monkeypatch, capsys, name, count):
    source = random_model(zoo.PUBLISHED[name].config, count)
    publish_detrex(server, monkeypatch, name, source)
    loaded = load(name, device="cpu")
    assert_same_weights(loaded.model, source, COCO_ROWS if count == 91 else range(80))
    assert loaded.class_names == list(COCO_NAMES)
    _zoo(capsys, is_cached={name})


def torchvision_name(name):
    """Written out independently of the converter's table."""
    first, *rest = name.split(".")
    if first == "stem":
        return ".".join(["conv1", rest[-1]] if rest[1] != "norm" else ["bn1", rest[-1]])
    layer, (block, part, *last) = f"layer{int(first[3:]) - 1}", rest
    if part == "shortcut":
        part = "downsample.1" if last[0] == "norm" else "downsample.0"
    elif last[0] == "norm":
        part = part.replace("conv", "bn")
    return f"{layer}.{block}.{part}.{last[-1]}"


@pytest.fixture
def shapes(hub, in_process, tmp_path):
    """The address of a trained model on the hub, and its folder."""
    folder = tmp_path / "trained"
    quick = ["train.max_iter=1", "train.pictures.count=0", "train.pictures.tensorboard=0"]
    assert in_process("--config-file", CONFIG, f"train.output_dir={folder}", *quick) == 0
    content = read_checkpoint(folder / "model_final.pth")
    target = folder / "model.safetensors"
    assert main(["convert", str(folder / "model_final.pth"), str(target)]) == 0
    hub.files["/someone/shapes/model.safetensors"] = target.read_bytes()
    return content["model"]


def test_ones_own_model_on_the_hub_is_evaluated_trained_on_and_loaded(
    shapes, in_process, tmp_path, capsys
):
    address = "hf://someone/shapes@v1"
    model = load_model(address, device="cpu")
    assert all(torch.equal(x, shapes[k]) for k, x in model.state_dict().items())
    assert list(Predictor(address, device="cpu").class_names) == SHAPES
    capsys.readouterr()
    out = f"train.output_dir={tmp_path / 'out'}"
    start = f"train.init_checkpoint={address}"
    assert in_process("--config-file", CONFIG, "--eval-only", out, start) == 0
    assert "| bbox |" in capsys.readouterr().out
    steps = ["train.max_iter=1", "optimizer.lr=0.0", "train.pictures.count=0"]
    assert in_process("--config-file", CONFIG, out, start, *steps) == 0
    tuned = read_checkpoint(tmp_path / "out" / "model_final.pth")["model"]
    name = "transformer.decoder.class_head.weight"
    assert torch.equal(tuned[name], shapes[name])


def test_an_unknown_name_is_refused_before_a_training_starts(in_process, tmp_path, capsys):
    code = in_process("--config-file", CONFIG, f"train.output_dir={tmp_path / 'out'}",
                      "train.init_checkpoint=dab_detr_r50_dc5_3patterns")  # fmt: skip
    assert code == 1
    assert "did you mean dab_detr_r50_dc5_3pat" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_for_some_of_cocos_classes_starts_with_their_rows(server, cache, monkeypatch):
    source = random_model("dab_detr_r50_50ep.py", 80)
    publish_detrex(server, monkeypatch, "detrex_dab_detr_r50", source)
    model = instantiate(get_config("dab_detr_r50_50ep.py", ["model.num_classes=2"]).model)
    checkpointer = Checkpointer(model, complete=False, class_names=["cat", "dog"])
    checkpointer.load("detrex_dab_detr_r50")
    rows = [COCO_NAMES.index(name) for name in ("cat", "dog")]
    assert model.transformer.decoder.class_head.bias.tolist() == rows


def test_the_list_needs_no_pytorch():
    program = (
        "import sys\n"
        "from dab_detr.cli.main import main\n"
        "code = main(['zoo'])\n"
        "assert not {'torch', 'detectron2'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
