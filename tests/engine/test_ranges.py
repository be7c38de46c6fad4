"""Numbers of a config that cannot work are refused by name, before anything starts."""

from pathlib import Path

import pytest

from dab_detr.config import get_config, list_configs
from dab_detr.engine.ranges import check_ranges, leaves, range_of
from dab_detr.errors import InputError

CONFIG = Path(__file__).parents[1] / "assets" / "tiny_config.py"

# where a number says which of several there is, everything is left to the backbone
PLACES = ("last_block_indexes", "window_block_indexes", "out_indices")


@pytest.mark.parametrize("name", [x for x in list_configs() if not x.startswith("ablations")])
def test_every_number_of_model_training_and_optimizer_has_a_range(name):
    cfg = get_config(name)
    for section in ("model", "train", "optimizer", "lr_multiplier"):
        for key, value in leaves(cfg, section):
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert range_of(key) or key.split(".")[-2] in PLACES, key
    check_ranges(cfg)


WRONG = {
    "model.num_select": ["0", "-1", "1.5", "True", "many", "null", "nan", "inf"],
    "model.num_classes": ["0"],
    "model.transformer.queries.num_queries": ["0", "-3"],
    "model.transformer.encoder.num_layers": ["-1", "0"],
    "model.transformer.decoder.num_layers": ["0"],
    "model.transformer.d_model": ["0", "-32", "30"],
    "model.transformer.encoder.num_heads": ["0", "7"],
    "model.transformer.encoder.ffn_dim": ["0"],
    "model.transformer.queries.num_patterns": ["-1"],
    "model.transformer.queries.query_dim": ["5"],
    "model.transformer.encoder.dropout": ["1.0", "-0.1", "nan"],
    "model.transformer.key_temperature": ["0", "-20"],
    "model.transformer.queries.temperature": ["inf"],
    "model.pixel_mean": ["[0,0]", "3", "[]", "[0,nan,0]"],
    "model.pixel_std": ["[1,0,1]", "[1,1,1,1]", "[1,-1,1]"],
    "model.criterion.class_weight": ["-1"],
    "model.criterion.focal_alpha": ["1.1"],
    "model.criterion.matcher.giou_weight": ["-2", "nan"],
    "model.criterion.matcher.focal_gamma": ["-1"],
    "model.backbone.stem.out_channels": ["0"],
    "model.backbone.stages.0.num_blocks": ["0"],
    "model.backbone.stages.1.out_channels": ["-64"],
    "optimizer.lr": ["-1", "nan", "fast", "inf"],
    "optimizer.weight_decay": ["-0.1"],
    "optimizer.betas": ["[0.9,1.0]", "[-0.1,0.9]"],
    "optimizer.params.lr_factor_func.factor": ["-1"],
    "train.max_iter": ["True", "2.5", "0"],
    "train.epochs": ["-1", "nan"],
    "train.seed": ["1.5", "5000000000"],
    "train.clip_grad.max_norm": ["nan", "True"],
    "train.ema.decay": ["True"],
    "train.pictures.score_threshold": ["2", "high"],
    "train.checkpointer.max_to_keep": ["1.0"],
    "dataloader.train.num_workers": ["1.5"],
    "dataloader.train.mapper.augmentations.0.prob": ["1.5"],
    "lr_multiplier.warmup_factor": ["-1"],
}


@pytest.mark.parametrize("key, value", [(key, x) for key, values in WRONG.items() for x in values])
def test_numbers_out_of_range_are_refused_by_name(key, value):
    cfg = get_config("shapes/dab_detr_shapes.py", [f"{key}={value}"])
    # together with another key, either may be named
    either = {"model.transformer.encoder.num_heads": r"model\.transformer\.\S*(num_heads|d_model)"}
    words = either.get(key, key.replace(".", r"\."))
    with pytest.raises(InputError, match=f"{words}"):
        check_ranges(cfg)


def test_nothing_is_written_before(in_process, tmp_path, capsys):
    code = in_process("--config-file", str(CONFIG), "model.num_select=0",
                      f"train.output_dir={tmp_path / 'out'}")  # fmt: skip
    assert code == 1
    assert "num_select is 0; a whole number from 1 is needed." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_usual_numbers_are_in_range():
    values = ("optimizer.lr=0", "model.transformer.encoder.dropout=0.1", "train.max_iter=null",
              "train.seed=-1", "model.transformer.queries.num_patterns=3",
              "train.clip_grad.max_norm=0", "model.pixel_std=[1,1,1]", "train.epochs=0.5",
              "optimizer.betas=[0,0.9]")  # fmt: skip
    check_ranges(get_config("shapes/dab_detr_shapes.py", values))
