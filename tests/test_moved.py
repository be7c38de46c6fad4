"""Keys of version 0.1 are refused with the names that they have now."""

import re

import pytest
from omegaconf import OmegaConf

from dab_detr.config import get_config
from dab_detr.errors import InputError
from dab_detr.moved import MOVED_KEYS

CONFIG = "dab_detr_r50_50ep.py"
# all that the model of version 0.1 had and that of now has not
OF_0_1 = [
    "d_model", "num_heads", "num_encoder_layers", "num_decoder_layers", "ffn_dim", "dropout",
    "num_queries", "num_patterns", "query_dim", "anchor_init", "freeze_anchor_centers",
    "modulate_hw_attention", "update_anchors", "share_box_head", "key_temperature",
    "query_temperature",
]  # fmt: skip


def test_the_table_has_all_of_them():
    assert list(MOVED_KEYS) == [f"model.{name}" for name in OF_0_1]


@pytest.mark.parametrize("old", MOVED_KEYS)
def test_every_key_is_refused_with_one_that_exists(tmp_path, old):
    new = MOVED_KEYS[old]
    value = OmegaConf.select(get_config(CONFIG), new)
    assert value is not None
    # which takes what the old one took
    assert OmegaConf.select(get_config(CONFIG, [f"{new}={value}"]), new) == value
    words = rf"keys of version 0\.1: {re.escape(old)} is {re.escape(new)} now\."
    for override in (f"{old}={value}", f"+{old}={value}"):
        with pytest.raises(InputError, match=words):
            get_config(CONFIG, [override])
    python, yaml = tmp_path / "mine.py", tmp_path / "mine.yaml"
    python.write_text(
        "from dab_detr import get_config\n\n"
        f"model = get_config({CONFIG!r}).model\n{old} = {value!r}\n"
    )
    yaml.write_text(f"model: {{{old.removeprefix('model.')}: {value}}}\n")
    for file in (python, yaml):
        with pytest.raises(InputError, match=f"{re.escape(str(file))} has {words}"):
            get_config(file)


def test_all_keys_of_a_file_are_named_at_once(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model: {num_queries: 100, dropout: 0.1, num_classes: 3}\n")
    with pytest.raises(InputError, match="num_queries is .* now, model.dropout is .* now.$"):
        get_config(file)
