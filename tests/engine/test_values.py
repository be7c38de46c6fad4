"""Values of a config that are of the wrong kind end in a sentence, before anything is written."""

import re
from pathlib import Path

import pytest

CONFIG = str(Path(__file__).parents[1] / "assets" / "tiny_config.py")

SECTION = "a section of keys is needed"
CALL = r"a LazyCall, L\(...\)\(...\), is needed"
SWITCH = "True or False is needed"


@pytest.mark.parametrize(
    "override, words",
    [
        ("train=3", f"config's train is 3; {SECTION}"),
        ("dataloader=[]", "dataloader=.* cannot be applied: it is a section"),
        ("dataloader=4", f"config's dataloader is 4; {SECTION}"),
        ("model=null", f"config's model is None; {CALL}"),
        ("optimizer=null", f"config's optimizer is None; {CALL}"),
        ("optimizer.params=null", f"config's optimizer.params is None; {CALL}"),
        ("lr_multiplier=null", f"config's lr_multiplier is None; {CALL}"),
        ("dataloader.train=null", f"config's dataloader.train is None; {CALL}"),
        ("dataloader.train.dataset=tiny", f"dataloader.train.dataset is 'tiny'; {CALL}"),
        ("train.writers=[3]", "train.writers.0 is 3; a LazyCall is needed"),
        (
            "train.writers=[{_target_: torch.nn.Identity}]",
            "train.writers.0 builds Identity; a LazyCall",
        ),
        ("train.output_dir=", "train.output_dir is empty; set it to a folder"),
        ("train.seed=abc", "train.seed is 'abc'; a whole number to 2147483647 is needed"),
        ("lr_multiplier.warmup_length=2", "warmup_length is 2; a finite number from 0 to 1"),
        ("dataloader.train.mapper.is_train=maybe", SWITCH),
        # declared so by the part that takes it
        ("+dataloader.evaluator.distributed=no", f"evaluator.distributed is 'no'; {SWITCH}"),
        ("dataloader.test.mapper.image_format=XYZ", "'XYZ'; RGB, BGR, L or another"),
        ("dataloader.train.mapper.image_format=RGBA", "with 4 channels, but .* has 3"),
    ],
)
def test_values_of_another_kind_are_named(
    in_process, tmp_path, monkeypatch, capsys, override, words
):
    monkeypatch.chdir(tmp_path)
    assert in_process("--config-file", CONFIG, "train.output_dir=out", override) == 1
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, last), last
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert not list(tmp_path.glob(".lock"))
