import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from dab_detr.analysis import count_flops, training_memory
from dab_detr.config import get_config
from dab_detr.engine.memory import checkpoint_activations

ROOT = Path(__file__).parents[1]

# Table 2 of the paper
PUBLISHED = {
    "r50": 94,
    "r50_3pat": 100,
    "r50_dc5": 202,
    "r50_dc5_3pat": 216,
    "r101": 174,
    "r101_3pat": 179,
    "r101_dc5": 282,
    "r101_dc5_3pat": 296,
}


@pytest.fixture
def tool(load_tool):
    return load_tool("analyze_model")


# everything, at 1280x800 and with 80 classes: fixed here, so that a change shows
TOTAL = {
    "r50": 102.9,
    "r50_3pat": 115.6,
    "r50_dc5": 227.5,
    "r50_dc5_3pat": 248.6,
    "r101": 178.8,
    "r101_3pat": 191.6,
    "r101_dc5": 303.5,
    "r101_dc5_3pat": 324.5,
}


# these run the whole model on a whole image, twice: up to 300 GFLOPs
LONG = [x for x in PUBLISHED if x != "r50"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "variant",
    [pytest.param(x, marks=[pytest.mark.long] if x in LONG else []) for x in PUBLISHED],
)
def test_gflops_are_the_papers_as_it_counts_them(variant):
    """Without most linear layers, at 1333x800: see docs/MODEL_ZOO.md."""
    model = instantiate(get_config(f"dab_detr_{variant}_50ep.py").model)
    gflops = count_flops(model, 800, 1333)
    assert gflops["as the paper counts"] == pytest.approx(PUBLISHED[variant], rel=0.01)
    assert count_flops(model, 800, 1280)["total"] == pytest.approx(TOTAL[variant], rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_attention_is_counted_as_two_products(small_model):
    """One image of 64 pixels gives 16 cells here; the model has 10 queries and width 32."""
    model = small_model()
    without = small_model(num_encoder_layers=0)
    cells, width, ffn = 8 * 8, 32, 64
    gflops = [count_flops(m, 64, 64)["encoder"] * 1e9 for m in (model, without)]
    attention = cells * cells * 2 * width
    projections = cells * 4 * width * width
    feed_forward = cells * 2 * width * ffn
    scale = cells * 2 * width * width
    norms = 2 * 5 * cells * width  # fvcore counts five operations an element
    per_layer = attention + projections + feed_forward + scale + norms
    assert gflops[0] == pytest.approx(2 * per_layer, rel=0.01)
    assert gflops[1] == 0


@pytest.mark.filterwarnings("ignore")
def test_the_tool_prints_a_table_and_json(tool, capsys):
    config = ["--config-file", "shapes/dab_detr_shapes.py", "--size", "96", "96"]
    assert tool.main(config) == 0
    assert "| total" in capsys.readouterr().out
    assert tool.main([*config, "--json", "model.num_classes=5"]) == 0
    content = json.loads(capsys.readouterr().out)
    parts = [content[p] for p in ("backbone", "input_proj", "encoder", "queries", "decoder")]
    assert sum(p["parameters"] for p in parts) == content["total"]["parameters"]
    assert sum(p["gflops"] for p in parts) == pytest.approx(content["total"]["gflops"], abs=0.01)
    assert tool.main(["--config-file", "none.py"]) == 1
    assert "no config file none.py" in capsys.readouterr().err


def test_the_memory_of_a_training_step(small_model):
    def peak(batch_size, dtype=None, **checkpointing):
        model = small_model(num_encoder_layers=6)
        checkpoint_activations(model, **checkpointing)
        return training_memory(model.train(), batch_size, 128, 160, dtype)

    first, second, third = (peak(n) for n in (2, 4, 6))
    weights = sum(p.numel() * 4 for p in small_model(num_encoder_layers=6).parameters())
    # weights, gradients and the two averages of AdamW; an image's activations each
    images = 2 * 3 * 128 * 160 * 4
    assert first > 4 * weights + images
    assert third - second == pytest.approx(second - first, rel=0.1)
    assert peak(4, encoder=True) < 0.9 * second
    assert peak(4, torch.bfloat16) < 0.9 * second


def test_the_tool_prints_the_memory(tool, capsys):
    arguments = ["--config-file", "shapes/dab_detr_shapes.py", "--size", "64", "64"]
    assert tool.main([*arguments, "--training-memory", "2"]) == 0
    assert re.fullmatch(r"2 x 64x64: \d+\.\d\d GiB of tensors\n", capsys.readouterr().out)
    assert tool.main([*arguments, "--training-memory", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] > 4 * 2**20
    with pytest.raises(SystemExit):
        tool.main([*arguments, "--training-memory", "0"])
