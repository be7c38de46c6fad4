"""Comparison with recorded outputs of the published code, number by number.

A reference file (``.npz``) has a tiny model: sizes and switches (``meta``, JSON), weights with the
published names (``state/*``), one batch (``in/*``, ``target/*``), and the results of the published
code: ``out/*``, ``match/*``, ``loss/*``, ``grad/*``, ``post/*``.
"""

import json
import os
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from torch import nn

from dab_detr.checkpoint.conversion import from_dab_detr, to_dab_detr
from dab_detr.checkpoint.official import OFFICIAL
from dab_detr.compiling import compile_for_training
from dab_detr.errors import InputError
from dab_detr.flat_config import model_config
from dab_detr.modeling import HungarianMatcher, SetCriterion, Targets, select_detections

# Tolerances in float32: absolute for outputs, relative for losses and gradients.
LIMITS = {
    "key encoding": 1e-5,
    "class logits": 1e-4,
    "boxes": 1e-4,
    "matching": 0.0,
    "losses": 1e-4,
    "gradients": 1e-3,
    "scores": 1e-5,
    "labels": 0.0,
    "detected boxes": 1e-3,
}
_LOSS_NAMES = {"loss_ce": "loss_class", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}


def compare_with_reference(path: str | os.PathLike, *, compile: bool = False) -> dict[str, float]:
    """Run the model of a reference file and compare all recorded results.

    Args:
        compile: compile the model as ``train.compile=True`` does.

    Returns:
        The largest error of each kind in :data:`LIMITS`. Matching and labels count differing
        entries; detected boxes are in pixels.

    Raises:
        InputError: if the file is not a reference file.
    """
    try:
        with np.load(path) as file:
            data = {name: file[name] for name in file.files}
        meta = json.loads(str(data["meta"]))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a reference file: {error}.") from error
    record = {name: torch.from_numpy(x) for name, x in data.items() if x.dtype.kind in "fib"}
    try:
        return _compare(meta, record, path, compile)
    except KeyError as error:
        raise InputError(f"{path} lacks {error}.") from error


def _compare(
    meta: dict[str, Any], record: dict, path: str | os.PathLike, compile: bool
) -> dict[str, float]:
    model = _build(meta, record, path)
    if compile:
        compile_for_training(model["transformer"])
    targets = _targets(record)
    num_layers = meta["dec_layers"]

    transformer = model["transformer"]
    key_encoding = transformer.key_encoding(record["in/mask"]).permute(0, 3, 1, 2)
    outputs = transformer(model["input_proj"](record["in/features"]), record["in/mask"])
    class_logits, box_logits = outputs.class_logits, outputs.box_logits
    boxes = box_logits.sigmoid()
    criterion = SetCriterion(HungarianMatcher())
    matches = criterion.match(outputs, targets)
    losses = criterion.losses(outputs, matches, targets, len(targets.labels))
    total = sum(losses.values())
    total.backward()
    found = select_detections(
        class_logits[-1].detach(), box_logits[-1].detach(), len(record["post/0/scores"])
    )

    errors = {
        "key encoding": _distance(key_encoding, record["out/key_position"]),
        "class logits": _distance(class_logits, record["out/pred_logits"]),
        "boxes": _distance(boxes, record["out/pred_boxes"]),
        "matching": _differing_matches(matches, record, targets, num_layers),
        "losses": _relative_losses(losses, total, record, criterion.weights, num_layers),
        "gradients": _relative_gradients(model, record),
    }
    post = {"scores": 0.0, "labels": 0.0, "detected boxes": 0.0}
    for image, (scores, labels, boxes_xyxy) in enumerate(zip(*found)):
        wanted = {part: record[f"post/{image}/{part}"] for part in ("scores", "labels", "boxes")}
        count = len(wanted["scores"])
        height, width = meta["image_valid"][image]
        in_pixels = boxes_xyxy * torch.tensor([width, height, width, height])
        post["scores"] = max(post["scores"], _distance(scores[:count], wanted["scores"]))
        post["labels"] += float((labels[:count] != wanted["labels"]).sum())
        post["detected boxes"] = max(
            post["detected boxes"], _distance(in_pixels[:count], wanted["boxes"])
        )
    return errors | post


def _build(meta: dict[str, Any], record: dict, path: str | os.PathLike) -> nn.ModuleDict:
    """The projection and the transformer."""
    prefix = "state/"
    state = {k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)}
    settings = model_config(
        num_classes=meta["num_classes"],
        d_model=meta["d_model"],
        num_heads=meta["nheads"],
        num_encoder_layers=meta["enc_layers"],
        num_decoder_layers=meta["dec_layers"],
        ffn_dim=meta["ffn"],
        num_queries=meta["num_queries"],
        num_patterns=meta["num_patterns"],
        query_dim=meta["query_dim"],
        modulate_hw_attention=meta["modulate"],
        update_anchors=meta["update"],
        share_box_head=not meta["per_layer_heads"],
        key_temperature=meta["temperature"],
    )
    input_proj = nn.Conv2d(meta["in_channels"], meta["d_model"], kernel_size=1)
    transformer = instantiate(settings.transformer)
    model = nn.ModuleDict({"input_proj": input_proj, "transformer": transformer})
    try:
        model.load_state_dict(to_dab_detr(state).state)
    except (InputError, RuntimeError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    return model


def _targets(record: dict) -> Targets:
    count = len(record["in/mask"])
    labels = [record[f"target/{image}/labels"] for image in range(count)]
    boxes = [record[f"target/{image}/boxes"] for image in range(count)]
    return Targets(torch.cat(labels), torch.cat(boxes), [len(x) for x in labels])


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    difference = (ours.detach() - theirs).abs().max().item() if ours.numel() else 0.0
    # NaN would compare as smaller than any tolerance
    return float("inf") if difference != difference else difference


def _differing_matches(matches, record: dict, targets: Targets, num_layers: int) -> float:
    differing = 0
    ends = np.cumsum(targets.counts)
    for layer in range(num_layers):
        for image, (count, end) in enumerate(zip(targets.counts, ends)):
            here = (matches.layer == layer) & (matches.image == image)
            pairs = zip(matches.query[here], matches.target[here] - (end - count))
            ours = {(int(q), int(t)) for q, t in pairs}
            prefix = f"match/{layer}/{image}/"
            theirs = set(zip(record[prefix + "query"].tolist(), record[prefix + "target"].tolist()))
            differing += len(ours ^ theirs)
    return float(differing)


def _relative_losses(losses, total, record: dict, weights: dict, num_layers: int) -> float:
    errors = [abs(total.item() / record["loss/total"].item() - 1)]
    for theirs, ours in _LOSS_NAMES.items():
        for suffix in ["", *(f"_{layer}" for layer in range(num_layers - 1))]:
            value = losses[ours + suffix].item() / weights[ours]
            wanted = record[f"loss/{theirs}{suffix}"].item()
            errors.append(abs(value - wanted) / max(abs(wanted), 1e-12))
    return max(float("inf") if error != error else error for error in errors)


def _relative_gradients(model: nn.Module, record: dict) -> float:
    """Largest difference relative to the largest entry of the recorded gradient."""
    gradients = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    errors = [0.0]
    ours = from_dab_detr(gradients, OFFICIAL)
    for name, wanted in record.items():
        if name.startswith("grad/"):
            error = _distance(ours[name.removeprefix("grad/")], wanted)
            errors.append(error / max(wanted.abs().max().item(), 1e-12))
    return max(errors)
