"""Random checkpoints at full size, by the names and shapes of real files."""

import argparse
import json
from pathlib import Path

import torch
from detectron2.config import instantiate

from dab_detr.config import get_config

KEYS = json.loads(
    (Path(__file__).parents[1] / "assets" / "reference" / "checkpoint_keys.json").read_text()
)
CONFIGS = {
    "official_r50": "dab_detr_r50_50ep.py",
    "official_r50_3pat": "dab_detr_r50_3pat_50ep.py",
    "official_r101": "dab_detr_r101_50ep.py",
    "detrex_r50": "dab_detr_r50_50ep.py",
}


def random_checkpoint(case):
    """Random tensors by the names and shapes of a real file; what it stores twice is equal."""
    state = {}
    for name, shape in KEYS[case].items():
        original = name.replace("transformer.decoder.bbox_embed", "bbox_embed")
        original = original.replace("ffns.0.activation", "ffns.0.layers.0.1")
        if original not in state:
            state[original] = torch.randn(shape).abs() + 0.1
        state[name] = state[original].clone()
    assert state.keys() == KEYS[case].keys()
    return state


def model_of(case, **arguments):
    overrides = [f"model.{name}={value}" for name, value in arguments.items()]
    return instantiate(get_config(CONFIGS[case], overrides).model)


def save_official(state, path):
    # as published: with the command line beside the weights
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4), "epoch": 49}, path)
    return path
