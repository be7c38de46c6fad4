"""Files as they are found: in pieces, from wrapped models, with numpy's numbers in them."""

import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from four_stages import own_model
from safetensors.torch import save_file
from torch import nn

from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.conversion import from_dab_detr
from dab_detr.checkpoint.reading import DamagedCheckpoint, read_checkpoint
from dab_detr.errors import InputError


def split(state, folder, kind):
    """Write tensors as transformers does when they are too large for one file."""
    folder.mkdir()
    names = list(state)
    parts = {f"part {i}.{kind}": names[i::3] for i in range(3)}
    for file, part in parts.items():
        tensors = {name: state[name].contiguous() for name in part}
        if kind == "safetensors":
            save_file(tensors, folder / file)
        else:
            torch.save(tensors, folder / file)
    base = "model" if kind == "safetensors" else "pytorch_model"
    index = folder / f"{base}.{kind}.index.json"
    files = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_checkpoint_in_several_files_is_read_by_folder_and_by_index(tmp_path, kind):
    state = {f"tensor.{i}": torch.randn(2, i) for i in range(1, 8)}
    index = split(state, tmp_path / "hf", kind)
    for path in (tmp_path / "hf", index):
        read = read_checkpoint(path)["model"]
        assert read.keys() == state.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    (tmp_path / "hf" / f"part 1.{kind}").rename(tmp_path / "gone")
    with pytest.raises(InputError, match=f"no file .*part 1.{kind}, which {index.name} names"):
        read_checkpoint(index)
    (tmp_path / "gone").rename(tmp_path / "hf" / f"part 1.{kind}")
    for change, words in (
        (lambda files: files.update({"tensor.9": f"part 0.{kind}"}), r"lack tensor\.9"),
        (lambda files: files.update({"tensor.9": f"../part 0.{kind}"}), "not a file of its folder"),
        (lambda files: files.update({"tensor.9": index.name}), "not a file of its folder"),
        (lambda files: files.clear(), "no weight_map"),
    ):
        content = json.loads(index.read_text())
        change(content["weight_map"])
        (index.parent / "changed").mkdir(exist_ok=True)
        changed = index.parent / "changed" / index.name
        for part in index.parent.glob("part*"):
            (changed.parent / part.name).write_bytes(part.read_bytes())
        changed.write_text(json.dumps(content))
        with pytest.raises(InputError, match=words):
            read_checkpoint(changed)
    index.write_text("{")
    with pytest.raises(DamagedCheckpoint, match="index.json cannot be read"):
        read_checkpoint(tmp_path / "hf")


def wrapped(*prefixes):
    return lambda name: "".join(prefixes) + name


WRAPPERS = {
    "DDP": ("model", wrapped("module.")),
    "compiled": ("model", wrapped("_orig_mod.")),
    "DDP around compiled": ("model", wrapped("module._orig_mod.")),
    "compiled around DDP": ("model", wrapped("_orig_mod.module.")),
    "Lightning": ("state_dict", wrapped("model.")),
    "Lightning, DDP, compiled": ("state_dict", wrapped("model.", "module.", "_orig_mod.")),
    "compiled Lightning": ("state_dict", wrapped("_orig_mod.", "model.")),
    "Lightning in Lightning": ("state_dict", wrapped("model.", "model.")),
    "a part is compiled": ("model", lambda name: name.replace(".decoder.", ".decoder._orig_mod.")),
    "alone": (None, wrapped("module.")),
}


@pytest.fixture(scope="module")
def layouts():
    state = own_model().state_dict()
    return {
        "dab_detr": state,
        "official": from_dab_detr(state, "official"),
        "hf": from_dab_detr(state, "hf"),
    }


@pytest.mark.parametrize("layout", ["dab_detr", "official", "hf"])
@pytest.mark.parametrize("case", WRAPPERS)
def test_wrappers_leave_no_trace_for_training_and_converter(
    layouts, layout, case, tmp_path, load_tool
):
    key, rename = WRAPPERS[case]
    state = {rename(name): tensor for name, tensor in layouts[layout].items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "in.ckpt")
    model = own_model()
    Checkpointer(model, complete=True).load(str(tmp_path / "in.ckpt"))
    convert = load_tool("convert_checkpoint").main
    assert convert([str(tmp_path / "in.ckpt"), str(tmp_path / "out.pth")]) == 0
    for found in (model.state_dict(), read_checkpoint(tmp_path / "out.pth")["model"]):
        assert found.keys() == layouts["dab_detr"].keys()
        assert all(torch.equal(found[k], x) for k, x in layouts["dab_detr"].items())


def test_what_lightning_keeps_beside_the_model_is_named(layouts, tmp_path):
    state = {f"model.{name}": tensor for name, tensor in layouts["official"].items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(2)}}, tmp_path / "in.ckpt")
    with pytest.raises(InputError, match=r"official does not have criterion\.weight"):
        Checkpointer(own_model(), complete=True).load(str(tmp_path / "in.ckpt"))
    torch.save({"module.a": torch.ones(1), "a": torch.ones(1)}, tmp_path / "twice.pth")
    with pytest.raises(InputError, match="twice.pth has a twice"):
        read_checkpoint(tmp_path / "twice.pth")


def renamed_numpy(content):
    """The same file as numpy 1 would have written it."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.infolist():
            data = old.read(entry).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            new.writestr(entry, data)
    return result.getvalue()


@pytest.mark.parametrize("numpy_1", [False, True])
@pytest.mark.parametrize(
    "value",
    [np.float64(42.2), np.float32(1), np.int64(3), np.bool_(True), np.str_("x"), np.arange(3)],
    ids=lambda x: type(x).__name__,
)
def test_numbers_of_numpy_are_data(tmp_path, value, numpy_1):
    file = tmp_path / "file.pth"
    torch.save({"model": {"a": torch.ones(1)}, "best": value, "log": {"ap": [value]}}, file)
    if numpy_1:
        file.write_bytes(renamed_numpy(file.read_bytes()))
    read = read_checkpoint(file)
    assert np.array_equal(read["best"], value) and np.array_equal(read["log"]["ap"][0], value)
    assert read["model"]["a"].tolist() == [1]


def test_numbers_of_numpy_among_the_weights_become_tensors(tmp_path):
    torch.save(
        {"model": {"a": np.float32(2), "b": np.ones(2), "c": np.int64(3)}}, tmp_path / "a.pth"
    )
    read = read_checkpoint(tmp_path / "a.pth")["model"]
    assert read["a"].item() == 2 and read["b"].tolist() == [1, 1] and read["c"].item() == 3


PLAIN = {
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:/d")],
    "times": [datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc), datetime.date.min],
    "durations": datetime.timedelta(seconds=3),
    "counts": collections.Counter("aab"),
    "lists": collections.defaultdict(list, a=[1]),
    "sets": [{1, 2}, frozenset("a")],
    "options": [argparse.Namespace(lr=1e-4), types.SimpleNamespace(lr=1)],
    "complex": 1j,
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_data_beside_the_weights_are_read(tmp_path, name, legacy):
    content = {"model": {"a": torch.ones(1)}, "hyper_parameters": PLAIN[name]}
    file = tmp_path / "file.pth"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    assert read_checkpoint(file)["hyper_parameters"] == PLAIN[name]
    file = tmp_path / "file.pkl"
    file.write_bytes(pickle.dumps(content | {"model": {"a": np.ones(1)}}))
    assert read_checkpoint(file)["hyper_parameters"] == PLAIN[name]


class AttributeDict(dict):
    """As Lightning saves a model's arguments."""


@pytest.mark.parametrize("home", ["lightning_fabric", "lightning.fabric"])
def test_lightnings_arguments_are_a_dictionary(tmp_path, monkeypatch, home):
    home += ".utilities.data"
    monkeypatch.setattr(AttributeDict, "__module__", home)
    module = types.ModuleType(home)
    module.AttributeDict = AttributeDict
    for depth in range(home.count(".") + 1):
        parent = ".".join(home.split(".")[: depth + 1])
        monkeypatch.setitem(sys.modules, parent, module)
    arguments = AttributeDict(lr=1e-4, folder=pathlib.Path("a"))
    torch.save({"model": {"a": torch.ones(1)}, "hyper_parameters": arguments}, tmp_path / "a.ckpt")
    monkeypatch.undo()
    found = read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]
    assert dict(found) == dict(arguments)


class Foreign:
    pass


@pytest.mark.parametrize(
    "value, name",
    [
        (Foreign(), "test_reading.Foreign"),
        (collections.UserDict(a=1), "collections.UserDict"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
    ids=["class", "collection", "module"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_are_refused_without_advice_to_trust_them(tmp_path, value, name, legacy):
    file = tmp_path / "file.pth"
    content = {"model": {"a": torch.ones(1)}, "other": value}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError) as caught:
        read_checkpoint(file)
    assert str(caught.value) == (
        f"The checkpoint {file} is refused: it has more than tensors ({name}), and reading that "
        "could run code. Save only its weights, e.g. as .safetensors."
    )


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x80\x04K\x01.", b"PK\x03\x04", b"\x80\x02cx\n"]
)
def test_damage_is_reported_without_colours_and_advice(tmp_path, content):
    file = tmp_path / "file.pth"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_checkpoint(file)
    message = str(caught.value)
    assert message.startswith(f"The checkpoint {file}")
    for word in ("\x1b", "weights_only", "trust", "options", "\n"):
        assert word not in message


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil_was_here",)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"evil{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"a": Evil()}}))
    else:
        torch.save({"model": {"a": Evil()}}, path)
    with pytest.raises(InputError, match="refused.*could run code"):
        read_checkpoint(path)
    assert not (tmp_path / "evil_was_here").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
def test_damaged_files_are_named(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    some = {"bbox_embed.layers.0.bias": torch.ones(1000)}
    if suffix == ".pth":
        torch.save({"model": some}, path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"a": np.ones(1000)}}))
    else:
        save_file(some, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"{path.name} cannot be read"):
        read_checkpoint(path)
    with pytest.raises(InputError, match="no checkpoint file"):
        read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(InputError, match="has none of model.safetensors"):
        read_checkpoint(tmp_path)
