"""Candidates for exported files: the files, and whole predictions from an image of any size.

The outcome of all of them are scores, labels and boxes of the detections.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarking.candidates import Setting, images, load_ours, load_transformers, model_config
from benchmarking.interleaved import Work
from dab_detr.analysis import example_batch
from dab_detr.errors import InputError
from dab_detr.exported import Detections, ExportMetadata
from dab_detr.inference.export import FORMATS
from dab_detr.inference.export.check import (
    all_predictions,
    assignment_tolerance,
    check_images,
    compare_image,
)
from dab_detr.inference.export.graph import DetectionGraph, trace
from dab_detr.inference.export.writing import require, save_openvino, write_onnx
from dab_detr.inference.loading import numbered_names
from dab_detr.inference.predictor import Predictor
from dab_detr.inference.runtimes import load_exported
from dab_detr.modeling.meta_arch import DABDETR

_CALIBRATION_IMAGES = 8


class ResizeRule(NamedTuple):
    """As in :class:`dab_detr.exported.ExportMetadata`."""

    short_edge: int | None
    max_size: int | None


class ExportedFile(NamedTuple):
    """An exported file: where it is, its precision and its bytes, with those of the weights."""

    path: Path
    precision: str
    size: int


def write_files(setting: Setting, model: DABDETR) -> list[Path]:
    """Export the model in float32 and int8, as ONNX and OpenVINO files, into the folder."""
    openvino = require("openvino", "onnx", "onnxscript", "onnxruntime", "nncf")
    edges = sorted((setting.height, setting.width))
    metadata = ExportMetadata(tuple(numbered_names(model.num_classes)), *edges)
    written = [setting.folder / f"fp32{suffix}" for suffix in (".onnx", ".xml")]
    write_onnx(trace(DetectionGraph(model)), written[0], metadata)
    save_openvino(openvino.convert_model(written[0]), written[1], metadata)
    quantized = ExportMetadata(metadata.class_names, *edges, precision="int8")
    calibration = [image.numpy() for image in check_images(metadata, _CALIBRATION_IMAGES)]
    for kind in (FORMATS["onnx"], FORMATS["openvino"]):
        for suffix in kind.suffixes:
            shutil.copy(setting.folder / f"fp32{suffix}", setting.folder / f"int8{suffix}")
        written.append(setting.folder / f"int8{kind.suffixes[0]}")
        kind.quantize(written[-1], quantized, calibration)
    return written


def describe(paths: Sequence[Path], model: DABDETR) -> tuple[list[ExportedFile], ResizeRule]:
    """What the files say of themselves.

    Raises:
        InputError: if one cannot be loaded, has another number of classes than the model, or
            another resize rule than the first.
    """
    files, rules = [], []
    for path in paths:
        metadata = load_exported(path).metadata
        if len(metadata.class_names) != model.num_classes:
            raise InputError(
                f"{path} has {len(metadata.class_names)} classes, the model {model.num_classes}: "
                "give --weights and --config-file of the checkpoint that it was exported from."
            )
        rules.append(ResizeRule(metadata.short_edge, metadata.max_size))
        if rules[-1] != rules[0]:
            raise InputError(
                f"{path} resizes images in another way than {paths[0]}: give files of one "
                "checkpoint."
            )
        parts = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
        size = sum(part.stat().st_size for part in parts)
        files.append(ExportedFile(path, metadata.precision, size))
    return files, rules[0]


def infer_file(setting: Setting, *, path: Path) -> Work:
    """Detection by a file, from pixels to the best detections in pixels."""
    runtime = load_exported(path)
    batch = [image["image"].numpy() for image in images(setting)]

    def outcome() -> dict[str, Tensor]:
        (found,) = runtime(batch)
        return _outcome(*map(torch.from_numpy, found))

    return Work(lambda: runtime(batch), outcome, runtime.computes)


def predict_ours(setting: Setting, *, rule: ResizeRule, path: Path | None = None) -> Work:
    """A whole prediction by the :class:`Predictor`, of an inference copy or a file."""
    if path is None:
        predictor = _predictor(setting, rule, optimize=True)
        computes = Work._field_defaults["computes"]
    else:
        predictor = Predictor(path)
        computes = predictor.runtime.computes
    image = image_to_resize(setting)

    def outcome() -> dict[str, Tensor]:
        found = predictor(image, score_threshold=0)
        return _outcome(found.scores, found.pred_classes, found.pred_boxes.tensor)

    return Work(lambda: predictor(image), outcome, computes)


def predict_transformers(setting: Setting, *, rule: ResizeRule) -> Work:
    """The same by transformers' pipeline, with its defaults: the best 100 above 0.5."""
    import transformers

    cfg = model_config(setting)
    longest = 10**6 if rule.max_size is None else rule.max_size
    processor = transformers.ConditionalDetrImageProcessor(
        do_resize=rule.short_edge is not None,
        size={"shortest_edge": rule.short_edge, "longest_edge": longest},
        image_mean=[x / 255 for x in cfg.pixel_mean],
        image_std=[x / 255 for x in cfg.pixel_std],
    )
    pipeline = transformers.pipeline(
        "object-detection",
        model=load_transformers(setting),
        image_processor=processor,
        device=setting.device,
    )
    image = image_to_resize(setting)

    def outcome() -> dict[str, Tensor]:
        # the pipeline itself cuts boxes to whole pixels
        outputs = pipeline.forward(pipeline.preprocess(image))
        size = outputs["target_size"]
        (found,) = processor.post_process_object_detection(outputs, 0.5, size)
        return _outcome(found["scores"], found["labels"], found["boxes"])

    return Work(lambda: pipeline(image), outcome)


def image_to_resize(setting: Setting) -> Image.Image:
    """An image of half the setting's height and width."""
    num_classes = model_config(setting).num_classes
    (example,) = example_batch(1, setting.height // 2, setting.width // 2, num_classes)
    return Image.fromarray(example["image"].permute(1, 2, 0).numpy())


class Expected(NamedTuple):
    """All predictions of the model in one image.

    Attributes:
        scores: ``(Q, K)``. boxes_xyxy: ``(Q, 4)``, in pixels.
        size: (height, width) of the image.
    """

    scores: np.ndarray
    boxes_xyxy: np.ndarray
    size: tuple[int, int]


def expected_of_pixels(setting: Setting) -> Expected:
    """What :func:`infer_file` has to find."""
    model = load_ours(setting)
    (example,) = images(setting)
    return _expected(model, example["image"], (setting.height, setting.width))


def expected_of_image(setting: Setting, rule: ResizeRule) -> Expected:
    """What :func:`predict_ours` and :func:`predict_transformers` have to find."""
    image = image_to_resize(setting)
    resized = _predictor(setting, rule).prepare(image).resized
    return _expected(load_ours(setting), resized, (image.height, image.width))


def difference(outcome: dict[str, Tensor], expected: Expected, precision: str) -> str | None:
    """How an outcome differs from the model's by more than the precision's tolerance.

    Args:
        precision: see :mod:`dab_detr.inference.export.check`, also for the rules.
    """
    scores, labels, boxes = (outcome[name].numpy() for name in ("scores", "labels", "boxes"))
    # a whole prediction has clipped its boxes
    corner = np.tile(expected.size[::-1], 2)
    found = Detections(scores, labels, boxes.clip(0, corner))
    expected_boxes = expected.boxes_xyxy.clip(0, corner)
    tolerance = assignment_tolerance(precision)
    result = compare_image(found, expected.scores, expected_boxes, tolerance)
    if result.passes(precision):
        return None
    if precision == "int8":
        return (
            f"only {result.found_again} of {result.confident} detections of the model are found "
            "again"
        )
    return (
        f"boxes differ by {result.boxes:.2g} pixels, scores by {result.scores:.2g}, "
        f"{result.missing} detections are in one only"
    )


def _predictor(setting: Setting, rule: ResizeRule, *, optimize: bool = False) -> Predictor:
    edge, longest = rule
    return Predictor(
        load_ours(setting), short_edge=edge or 0, max_size=longest or 10**6, optimize=optimize
    )


def _expected(model: DABDETR, image: Tensor, size: tuple[int, int]) -> Expected:
    (scores,), (boxes_xyxy,) = all_predictions(model, [image])
    scale = torch.tensor([size[1], size[0]] * 2)
    return Expected(scores.numpy(), (boxes_xyxy * scale).numpy(), size)


def _outcome(scores: Tensor, labels: Tensor, boxes_xyxy: Tensor) -> dict[str, Tensor]:
    return {"scores": scores.detach(), "labels": labels, "boxes": boxes_xyxy.detach()}
