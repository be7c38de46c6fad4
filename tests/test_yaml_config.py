"""A config as YAML is data: what a training wrote loads again, and nothing in a file is run."""

import builtins
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import OmegaConf

from dab_detr.config import get_config, list_configs
from dab_detr.engine.main import main
from dab_detr.errors import InputError
from dab_detr.evaluation.coco_evaluator import BoxEvaluator
from dab_detr.evaluation.voc_evaluator import VOCEvaluator

CONFIG = Path(__file__).parent / "assets" / "tiny_config.py"


@pytest.mark.parametrize("name", list_configs())
def test_what_a_training_writes_loads_again(tmp_path, name):
    file = tmp_path / "config.yaml"
    written = get_config(name)
    LazyConfig.save(written, str(file))
    read = get_config(file)
    LazyConfig.save(read, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == file.read_text()


def test_classes_and_tuples_come_back_as_they_were(tmp_path):
    file = tmp_path / "config.yaml"
    written = get_config("backbones/regnetx_4gf.py", ["train.max_iter=3"])
    LazyConfig.save(written, str(file))
    file.write_text(file.read_text() + "note: !!python/tuple [1, [2, 3]]\n")
    read = get_config(file, ["train.max_iter=4"])
    assert read.model.backbone.block_class is written.model.backbone.block_class
    assert OmegaConf.to_container(read.note) == [1, [2, 3]]
    assert read.train.max_iter == 4
    names = [list(instantiate(cfg.model.backbone).state_dict()) for cfg in (written, read)]
    assert names[0] == names[1]


def test_a_training_starts_from_what_another_wrote(in_process, tiny_shapes, tmp_path):
    code = in_process("--config-file", str(CONFIG), f"train.output_dir={tmp_path}",
                      "train.max_iter=1", "train.pictures.count=0")  # fmt: skip
    assert code == 0
    file = tmp_path / "config.yaml"
    assert main(["--config-file", str(file), "--resume", "train.max_iter=2"]) == 0
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 1


def targets(node):
    """Every ``_target_`` in dicts and lists."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = [node["_target_"]] if isinstance(node, dict) and "_target_" in node else []
    return [*own, *(name for child in children for name in targets(child))]


def test_what_version_0_1_wrote_loads_though_classes_have_moved():
    cfg = get_config(Path(__file__).parent / "assets" / "config_0_1.yaml")
    names = targets(OmegaConf.to_container(cfg))
    assert len(names) == 15
    assert all(callable(locate(name)) for name in names)
    evaluators = [locate(node._target_) for node in cfg.dataloader.evaluator]
    assert evaluators == [BoxEvaluator, VOCEvaluator]
    # classes are written as tags
    assert cfg.evaluator_class is VOCEvaluator


def test_a_config_that_imports_what_has_moved_gets_the_new_name(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from dab_detr.engine.voc_evaluator import VOCEvaluator\n")
    with pytest.raises(InputError, match="is now in dab_detr.evaluation.voc_evaluator"):
        get_config(file)


@pytest.fixture
def mark(monkeypatch):
    """What the attacks below would call."""
    called = []
    monkeypatch.setattr(builtins, "called_by_config", called.append, raising=False)
    yield
    assert not called


ATTACKS = {
    "call": "x: !!python/object/apply:builtins.called_by_config [1]",
    "new": "x: !!python/object/new:builtins.called_by_config [1]",
    "object": "x: !!python/object:builtins.called_by_config {}",
    "module": "x: !!python/module:evil",
    "name": "x: !!python/name:os.system ''",
    "target": "model: {_target_: builtins.called_by_config, x: 1}",
    "deep target": "model: {parts: [{a: {_target_: os.system, command: 'true'}}]}",
    "target in a key": "? {_target_: os.system}\n: 1",
    "imported by ours": "model: {_target_: detectron2.data.common.pickle.loads, data: x}",
    "loader of programs": "model: {_target_: detectron2.config.LazyConfig.load, filename: evil.py}",
    "loader of ours": "model: {_target_: dab_detr.config.get_config, name: evil.py}",
    "hub": "model: {_target_: torch.hub.load, repo: evil, model: x}",
    "target by reference": "a: os.system\nmodel: {_target_: '${a}'}",
    "target by number": "model: {_target_: 3}",
    "resolver": "model: '${oc.create:\"{_target_: os.system}\"}'",
    "nested resolver": "a: 1\nmodel: '${${a}:x}'",
    "strange module": "model: {_target_: evil.run}",
    "strange class": "model: !!python/name:evil.run ''",
}


@pytest.mark.usefixtures("mark")
@pytest.mark.parametrize("case", ATTACKS)
def test_nothing_is_run_or_imported(tmp_path, monkeypatch, case):
    (tmp_path / "evil.py").write_text("called_by_config('import')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(f"{ATTACKS[case]}\n")
    with pytest.raises(InputError, match="config.yaml cannot be loaded"):
        get_config(file)
    assert "evil" not in sys.modules


@pytest.mark.parametrize("content", ["", "- 1", "text", "a: [1", "a: &x [*x]", "\0"])
def test_what_is_no_config_is_refused(tmp_path, content):
    file = tmp_path / "config.yml"
    file.write_text(content)
    with pytest.raises(InputError, match="config.yml cannot be loaded"):
        get_config(file)
