"""What this project writes says so, and is read as it is, whatever model it is of."""

from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.engine import default_setup
from switches import SWITCHES
from torch import nn

from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.classes import COCO_NAMES, COCO_ROWS, RAW_COCO_NAMES
from dab_detr.checkpoint.reading import read_checkpoint
from dab_detr.checkpoint.writing import write_state
from dab_detr.config import get_config
from dab_detr.engine.training import train
from dab_detr.errors import InputError
from dab_detr.evaluation.evaluate import evaluate
from dab_detr.modeling import DABDETR

CONFIG = Path(__file__).parents[1] / "assets" / "tiny_config.py"
CLASS_HEAD = "transformer.decoder.class_head."


class ScaledNorm(nn.LayerNorm):
    """Adds a tensor."""

    def __init__(self, width):
        super().__init__(width)
        self.gain = nn.Parameter(torch.rand(1))

    def forward(self, x):
        return super().forward(x) * self.gain


class WithGain(DABDETR):
    """A switch that is yet to come and adds a tensor."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.transformer.decoder.norm = ScaledNorm(self.transformer.d_model)


class WithoutNorm(DABDETR):
    """A switch that is yet to come and removes tensors."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.transformer.decoder.norm = nn.Identity()


CASES = [*SWITCHES, {"kind": WithGain}, {"kind": WithoutNorm}]


def equal(state, other, besides="-"):
    assert state.keys() == other.keys()
    return all(torch.equal(state[k], other[k]) for k in state if not k.startswith(besides))


@pytest.mark.parametrize("switches", CASES, ids=str)
def test_every_switch_is_resumed_evaluated_and_fine_tuned_from_its_own_file(
    small_model, tmp_path, switches
):
    model = small_model(**switches)
    state = model.state_dict()
    saved = Checkpointer(model, str(tmp_path), complete=False)
    saved.save("model_0000004", iteration=4, trainer={})
    path = str(tmp_path / "model_0000004.pth")

    again = small_model(**switches)
    assert Checkpointer(again, str(tmp_path), complete=True).resume() == path
    assert equal(again.state_dict(), state)

    for name in ("model_best.pth", "weights.safetensors"):
        write_state(state, tmp_path / name, saved.description())
        evaluated = small_model(**switches)
        Checkpointer(evaluated, complete=True).load(str(tmp_path / name))
        assert equal(evaluated.state_dict(), state)

        tuned = small_model(**switches, num_classes=5)
        Checkpointer(tuned, complete=False).load(str(tmp_path / name))
        assert equal(tuned.state_dict(), state | {
            k: x for k, x in tuned.state_dict().items() if k.startswith(CLASS_HEAD)
        })  # fmt: skip


@pytest.mark.parametrize("kind", [WithGain, WithoutNorm])
def test_a_switch_that_is_yet_to_come_trains_and_goes_on(
    datasets_root, monkeypatch, tmp_path, forget_tiny, kind
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))

    def config(folder, *overrides):
        forget_tiny()
        cfg = get_config(CONFIG, [f"train.output_dir={tmp_path / folder}", *overrides])
        cfg.train.pictures.count = cfg.train.pictures.tensorboard = 0
        cfg.model._target_ = kind
        default_setup(cfg, None)
        return cfg, instantiate(cfg.model)

    cfg, model = config("first", "train.max_iter=1")
    train(cfg, model, torch.device("cpu"), resume=False)
    first = torch.load(tmp_path / "first" / "model_final.pth")
    assert first["description"]["class_names"] == ["rectangle", "ellipse", "triangle"]
    cfg, model = config("first", "train.max_iter=2")
    results = train(cfg, model, torch.device("cpu"), resume=True)
    assert torch.load(tmp_path / "first" / "model_final.pth")["iteration"] == 1

    cfg, other = config("second")
    Checkpointer(other, complete=True).load(str(tmp_path / "first" / "model_final.pth"))
    assert evaluate(cfg, other)["bbox"]["AP"] == results["bbox"]["AP"]

    start = f"train.init_checkpoint={tmp_path / 'first' / 'model_final.pth'}"
    cfg, other = config("second", start, "train.max_iter=1", "optimizer.lr=0.0")
    train(cfg, other, torch.device("cpu"), resume=False)
    trained = {name for name, _ in model.named_parameters()}
    states = [{k: m.state_dict()[k] for k in trained} for m in (model, other)]
    assert equal(*states)


def test_a_file_without_a_description_is_known_by_its_names(small_model, tmp_path):
    """As Detectron2's own checkpointer writes them."""
    model = small_model(kind=WithGain)
    torch.save({"model": model.state_dict(), "iteration": 3}, tmp_path / "old.pth")
    other = small_model(kind=WithGain)
    Checkpointer(other, complete=True).load(str(tmp_path / "old.pth"))
    assert equal(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("transformer.decoder.norm.weight"), r"lacks transformer\.decoder\.norm"),
        (lambda s: s.update({"transformer.new": torch.ones(1)}), r"does not have transformer\.new"),
        (
            lambda s: s.update({"transformer.decoder.norm.weight": torch.ones(3)}),
            r"norm\.weight is \(3,\) in the file and \(32,\) in the model",
        ),
    ],
    ids=["missing", "unknown", "another shape"],
)
@pytest.mark.parametrize("complete", [True, False])
def test_an_own_file_that_does_not_fit_the_model_is_refused(
    small_model, tmp_path, change, words, complete
):
    model = small_model()
    state = model.state_dict()
    change(state)
    write_state(state, tmp_path / "file.pth", Checkpointer(model, complete=True).description())
    with pytest.raises(InputError, match=words):
        Checkpointer(model, complete=complete).load(str(tmp_path / "file.pth"))


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_a_file_of_a_later_version_is_refused(small_model, tmp_path, name):
    model = small_model()
    description = Checkpointer(model, complete=True).description() | {"version": 3}
    write_state(model.state_dict(), tmp_path / name, description)
    with pytest.raises(
        InputError, match=f"{name} has version 3 of the format dab_detr.*newer dab_detr"
    ):
        Checkpointer(model, complete=True).load(str(tmp_path / name))


def test_an_own_backbone_reaches_a_model_that_holds_it_deeper(small_model, tmp_path):
    model = small_model()
    state = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    write_state(state, tmp_path / "file.pth", Checkpointer(model, complete=True).description())

    class Deeper(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.ModuleDict({"bottom_up": small_model().backbone})

    for other in (small_model(), Deeper()):
        Checkpointer(other, complete=False).load(str(tmp_path / "file.pth"))
        loaded = other.state_dict()
        for name, tensor in state.items():
            deeper = name.replace("backbone.", "backbone.bottom_up.")
            assert torch.equal(loaded[deeper if deeper in loaded else name], tensor)


def head(rows):
    """Row i of the weight and the bias are full of i."""
    numbers = torch.arange(float(rows))
    return {CLASS_HEAD + "weight": numbers[:, None].repeat(1, 32), CLASS_HEAD + "bias": numbers}


def loaded_rows(small_model, tmp_path, names, wanted, count=None, *, complete=False, rows=None):
    """Which row of a file each class of a model gets; None for a new one."""
    model = small_model(num_classes=rows or len(names))
    state = model.state_dict() | head(rows or len(names))
    source = Checkpointer(model, complete=True, class_names=names)
    write_state(state, tmp_path / "file.pth", source.description())
    other = small_model(num_classes=count or len(wanted))
    Checkpointer(other, complete=complete, class_names=wanted).load(str(tmp_path / "file.pth"))
    classes = other.transformer.decoder.class_head
    fresh = torch.isclose(classes.bias, torch.tensor(0.01).logit())
    assert (classes.weight[fresh].abs() <= 32**-0.5).all()
    assert (classes.weight[~fresh] == classes.bias[~fresh, None]).all()
    return [None if new else int(x) for new, x in zip(fresh, classes.bias)]


@pytest.mark.parametrize("complete", [True, False])
def test_rows_of_the_class_head_are_taken_by_name(small_model, tmp_path, complete):
    rows = partial(loaded_rows, small_model, tmp_path, complete=complete)
    assert rows(["cat", "dog", "cow"], ["cat", "dog", "cow"]) == [0, 1, 2]
    assert rows(["cat", "dog", "cow"], ["cow", "cat", "dog"]) == [2, 0, 1]
    assert rows(["cat", "dog", "cow"], ["dog"]) == [1]
    assert rows(list(RAW_COCO_NAMES), list(COCO_NAMES)) == list(COCO_ROWS)
    # nobody says which 80: COCO's, as the file has those
    assert rows(list(RAW_COCO_NAMES), None, 80) == list(COCO_ROWS)
    assert rows(list(RAW_COCO_NAMES), ["zebra", "dog"]) == [24, 18]
    # as many, of other or unknown names
    assert rows(["cat", "dog"], ["a", "b"]) == [0, 1]
    assert rows(["cat", "dog"], None, 2) == [0, 1]
    assert rows(None, ["a", "b"], rows=2) == [0, 1]


def test_91_classes_of_ones_own_do_not_become_cocos_80(small_model, tmp_path, caplog):
    own = [f"part {i}" for i in range(91)]
    eighty = [f"tool {i}" for i in range(80)]
    load = partial(loaded_rows, small_model, tmp_path)
    for names, wanted in ((own, list(COCO_NAMES)), (own, None), (list(RAW_COCO_NAMES), eighty)):
        assert load(names, wanted, 80) == [None] * 80
    for names in (own, list(RAW_COCO_NAMES)):
        with pytest.raises(InputError, match="91 classes, the model 80; it lacks tool 0, tool 1"):
            load(names, eighty, complete=True)
    # COCO's 80 do not become the 91 of one's own either
    assert load(list(COCO_NAMES), own) == [None] * 91
    # version 0.1 did not say
    with pytest.raises(InputError, match="91 classes, the model 80.*--coco-classes"):
        load(None, None, 80, rows=91, complete=True)
    with caplog.at_level("WARNING", logger="dab_detr"):
        assert load(None, None, 80, rows=91) == [None] * 80
    assert "re-initialised" in caplog.text and "--coco-classes" in caplog.text


def test_the_tool_asks_whose_91_classes_they_are(small_model, tmp_path, load_tool, capsys):
    convert = load_tool("convert_checkpoint").main
    model = small_model(num_classes=91)
    state = model.state_dict() | head(91)
    torch.save({"model": state}, tmp_path / "old.pth")
    call = [str(tmp_path / "old.pth"), str(tmp_path / "new.pth"), "--num-classes", "80"]
    assert convert(call) == 1
    assert "does not say whether its 91 classes are COCO's" in capsys.readouterr().err
    assert convert([*call, "--coco-classes"]) == 0
    new = read_checkpoint(tmp_path / "new.pth")
    assert new["description"]["class_names"] == list(COCO_NAMES)
    assert new["model"][CLASS_HEAD + "bias"].tolist() == list(COCO_ROWS)
    # what it wrote says whose they are
    call = [str(tmp_path / "new.pth"), str(tmp_path / "raw.safetensors"), "--num-classes", "91"]
    assert convert(call) == 0
    raw = read_checkpoint(tmp_path / "raw.safetensors")
    assert raw["description"]["class_names"] == list(RAW_COCO_NAMES)
    # those of a name that is not COCO's are new
    names = [f"part {i}" for i in range(91)]
    description = Checkpointer(model, complete=True, class_names=names).description()
    write_state(state, tmp_path / "own.pth", description)
    call = [str(tmp_path / "own.pth"), str(tmp_path / "new.pth"), "--num-classes", "80", "--force"]
    assert convert(call) == 0
    assert "re-initialised" in capsys.readouterr().out
    new = read_checkpoint(tmp_path / "new.pth")
    assert "class_names" not in new["description"]
    assert new["model"][CLASS_HEAD + "bias"].tolist() == pytest.approx([-4.59512] * 80)


def test_the_tool_keeps_an_own_file_of_any_model(small_model, tmp_path, load_tool, capsys):
    convert = load_tool("convert_checkpoint").main
    model = small_model(kind=WithGain)
    checkpointer = Checkpointer(model, str(tmp_path), complete=True, class_names=["a", "b", "c"])
    checkpointer.save("model_final")
    source = str(tmp_path / "model_final.pth")
    assert convert([source, str(tmp_path / "new.safetensors")]) == 0
    new = read_checkpoint(tmp_path / "new.safetensors")
    assert equal(new["model"], model.state_dict())
    assert new["description"] == checkpointer.description()
    assert convert([source, str(tmp_path / "other.pth"), "--to", "official"]) == 1
    assert "transformer.decoder.norm.gain" in capsys.readouterr().err
    assert not (tmp_path / "other.pth").exists()
