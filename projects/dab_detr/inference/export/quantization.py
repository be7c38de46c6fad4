"""Exported files in int8: the backbone's convolutions, calibrated on images.

Projection, transformer and heads stay in float32: decoders of detection transformers are known to
find nothing any more in int8.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog

import dab_detr.data  # noqa: F401  registers the generated shapes
from dab_detr.data.images import UnreadableImage, read_image
from dab_detr.errors import InputError
from dab_detr.exported import ExportMetadata, model_inputs
from dab_detr.inference.export.writing import describe_onnx, quiet, require, save_openvino
from dab_detr.inference.inputs import resize
from dab_detr.inference.runtimes import openvino_core

NUM_IMAGES = 64
_BACKBONE = "core.backbone."


def calibration_images(source: str | os.PathLike, metadata: ExportMetadata) -> list[np.ndarray]:
    """Images for the calibration, evenly spread over the source.

    Args:
        source: name of a registered data set, or a folder with images.

    Returns:
        At most 64 resized images, uint8 ``(C, H, W)``.

    Raises:
        InputError: if there is no such data set or folder, or an image cannot be read.
    """
    if Path(source).is_dir():
        files = [path for path in sorted(Path(source).rglob("*")) if path.is_file()]
    elif str(source) in DatasetCatalog:
        files = [record["file_name"] for record in DatasetCatalog.get(str(source))]
    else:
        raise InputError(f"There is no folder and no registered data set {source} to calibrate on.")
    if not files:
        raise InputError(f"{source} has no images to calibrate on.")
    count = min(len(files), NUM_IMAGES)
    chosen = [files[len(files) * index // count] for index in range(count)]
    try:
        images = [read_image(path, metadata.image_format) for path in chosen]
    except UnreadableImage as error:
        raise InputError(f"{error} The calibration needs it: give a folder of images.") from error
    return [resize(x, metadata.short_edge, metadata.max_size).numpy() for x in images]


def quantize_onnx(path: Path, metadata: ExportMetadata, images: Sequence[np.ndarray]) -> None:
    """Quantise an ONNX file in its place, with onnxruntime."""
    require("onnxruntime")
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._inputs: Iterator = (model_inputs([image]) for image in images)

        def get_next(self) -> dict | None:
            return next(self._inputs, None)

    nodes = [
        node.name
        for node in onnx.load(path).graph.node
        if node.op_type == "Conv" and node.input[1].startswith(_BACKBONE)
    ]
    # it logs with the root logger that the exporter's optimisation should have been run
    with quiet(None):
        quantize_static(
            path,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    quantized = onnx.load(path)
    describe_onnx(quantized, metadata)
    onnx.save(quantized, path)


def quantize_openvino(path: Path, metadata: ExportMetadata, images: Sequence[np.ndarray]) -> None:
    """Quantise an OpenVINO file in its place, with NNCF."""
    nncf = require("nncf")
    model = openvino_core().read_model(path)
    convolutions = [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    smoothing = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    with quiet("nncf"):
        quantized = nncf.quantize(
            model,
            nncf.Dataset([model_inputs([image]) for image in images]),
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,
            # the last convolution is the projection to the transformer
            ignored_scope=nncf.IgnoredScope(
                types=["MatMul"], names=[convolutions[-1].get_friendly_name()]
            ),
            # it would only scale the inputs of products that stay in float32
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smoothing),
        )
    # the weights' file is still mapped into memory: another name, then the old one
    new = path.with_name(f"quantized{path.suffix}")
    save_openvino(quantized, new, metadata)
    del model, quantized
    # NNCF's own plugin is freed in the thread that has loaded it, see openvino_core()
    gc.collect()
    for suffix in (".bin", ".xml"):
        new.with_suffix(suffix).replace(path.with_suffix(suffix))
