"""Writes a traced model as an ONNX, OpenVINO or torch.export file."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from dab_detr.errors import InputError
from dab_detr.exported import INPUTS, KEY, OUTPUTS, ExportMetadata

# the first one with LayerNormalization is 17; PyTorch writes 18 without conversion
_OPSET = 18
_DIMENSIONS = {0: "batch", 2: "height", 3: "width"}


def write_onnx(program: ExportedProgram, path: Path, metadata: ExportMetadata) -> None:
    """Write an ONNX file with the weights inside and the description in ``metadata_props``.

    The weights are in float16 for that precision.
    """
    onnx = require("onnx", "onnxscript")
    with quiet("torch.onnx"):
        model = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=_OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            external_data=False,
            verbose=False,
        ).model_proto
    _name_dimensions(model)
    if metadata.precision == "fp16":
        _keep_halves(model)
    describe_onnx(model, metadata)
    onnx.save(model, path)


def describe_onnx(model, metadata: ExportMetadata) -> None:
    """Put the description into an ONNX model."""
    require("onnx").helper.set_model_props(model, {KEY: metadata.to_json()})


def write_openvino(program: ExportedProgram, path: Path, metadata: ExportMetadata) -> None:
    """Write ``path`` (.xml) and the weights beside it (.bin), with the description inside.

    The weights are in float16 for that precision.
    """
    openvino = require("openvino")
    onnx_path = path.with_suffix(".onnx")
    write_onnx(program, onnx_path, metadata)
    model = openvino.convert_model(onnx_path)
    save_openvino(model, path, metadata)


def save_openvino(model, path: Path, metadata: ExportMetadata) -> None:
    """Write an OpenVINO model with the description in its ``rt_info``."""
    openvino = require("openvino")
    model.set_rt_info(metadata.to_json(), KEY)
    openvino.save_model(model, path, compress_to_fp16=metadata.precision == "fp16")


def write_torch_export(program: ExportedProgram, path: Path, metadata: ExportMetadata) -> None:
    """Write a file for ``torch.export.load``, with the description as an extra file."""
    with quiet("torch.onnx"):
        torch.export.save(program, path, extra_files={KEY: metadata.to_json()})


def require(*names: str):
    """Import the packages of the extra ``export``; returns the first.

    Raises:
        InputError: if one is missing.
    """
    import importlib

    try:
        return [importlib.import_module(name) for name in names][0]
    except ModuleNotFoundError as error:
        raise InputError(
            f"The export needs {error.name}: pip install 'dab_detr[export]'."
        ) from error


@contextlib.contextmanager
def quiet(name: str | None) -> Iterator[None]:
    """Keep a library's progress and notes on its own calls off the console.

    Args:
        name: of its logger; None: the root logger.
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_dimensions(model) -> None:
    """Name the dimensions of inputs and outputs; the exporter calls them s81 or similar."""
    pixels = next(x for x in model.graph.input if x.name == "pixels")
    dimensions = pixels.type.tensor_type.shape.dim
    names = {dimensions[axis].dim_param: name for axis, name in _DIMENSIONS.items()}
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
    # shapes of intermediate values are in terms of the old names
    del model.graph.value_info[:]


def _keep_halves(model) -> None:
    """Keep what float16 holds exactly in it: the exporter has converted the weights to float32."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if (half != values).any():
            continue
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
