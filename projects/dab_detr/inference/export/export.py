"""Exports a model: traces it, writes the file, checks it, and only then puts it in its place."""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.export import ExportedProgram

from dab_detr.errors import InputError
from dab_detr.exported import ExportMetadata
from dab_detr.files import atomic_write, cannot_be_written
from dab_detr.inference.export.check import NUM_IMAGES, check_images, compare, report, require_equal
from dab_detr.inference.export.graph import DetectionGraph, trace
from dab_detr.inference.export.quantization import quantize_onnx, quantize_openvino
from dab_detr.inference.export.writing import (
    require,
    write_onnx,
    write_openvino,
    write_torch_export,
)
from dab_detr.inference.loading import LoadedModel, numbered_names
from dab_detr.inference.runtimes import load_exported
from dab_detr.modeling.meta_arch import DABDETR


class Format(NamedTuple):
    """A format of exported files.

    Attributes:
        suffixes: of its files; the first is the one to load, and is written last.
        packages: what writing and checking it needs, beside PyTorch.
        write: called with the traced model, the path and the metadata.
        quantize: called with the path, the metadata and images to calibrate on; None: there is no
            int8.
    """

    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, Path, ExportMetadata], None]
    quantize: Callable[[Path, ExportMetadata, Sequence[np.ndarray]], None] | None = None


FORMATS = {
    "onnx": Format((".onnx",), ("onnx", "onnxscript", "onnxruntime"), write_onnx, quantize_onnx),
    "openvino": Format(
        (".xml", ".bin"), ("onnx", "onnxscript", "openvino"), write_openvino, quantize_openvino
    ),
    "torch_export": Format((".pt2",), (), write_torch_export),
}


def export_model(
    model: DABDETR,
    path: str | os.PathLike,
    metadata: ExportMetadata,
    *,
    format: str,
    calibration: Sequence[np.ndarray] = (),
    check: bool = True,
    force: bool = False,
    show: Callable[[str], object] = print,
) -> None:
    """Export a model for inference elsewhere.

    Args:
        model: on any device; it is not changed.
        path: file to write, with the format's suffix (``.onnx``, ``.xml``, ``.pt2``). OpenVINO
            writes a second one beside it, ``.bin``.
        metadata: what the file says about itself; ``precision`` is that of the export.
        format: a key of :data:`FORMATS`.
        calibration: for int8: resized images, uint8 ``(C, H, W)``, see
            :func:`~dab_detr.inference.export.quantization.calibration_images`.
        check: compare the file with the model, see :mod:`dab_detr.inference.export.check`.
        force: overwrite existing files.
        show: called with the table of the check.

    Raises:
        InputError: if a package is missing, the file exists, has another suffix or cannot be
            written.
        CheckFailed: if the file differs by more than the precision's tolerance; it is not written.
    """
    path = Path(path)
    kind = FORMATS[format]
    check_output(path, format, metadata.precision, force=force)
    if len(metadata.class_names) != model.num_classes:
        raise InputError(
            f"There are {len(metadata.class_names)} class names, but the model has "
            f"{model.num_classes} classes."
        )
    is_int8 = metadata.precision == "int8"
    if is_int8 and not len(calibration):
        raise InputError("int8 needs images to calibrate on.")
    if kind.packages:
        require(*kind.packages)
    try:
        with tempfile.TemporaryDirectory() as folder:
            unchecked = Path(folder) / f"model{kind.suffixes[0]}"
            graph = DetectionGraph(model, half_weights=metadata.precision == "fp16")
            kind.write(trace(graph), unchecked, metadata)
            if is_int8:
                kind.quantize(unchecked, metadata, calibration)
            if check:
                # this process has written the file itself
                runtime = load_exported(unchecked, trust=True)
                images = [*check_images(metadata), *map(torch.from_numpy, calibration[:NUM_IMAGES])]
                comparisons = compare(model, runtime, images)
                show(report(comparisons, runtime))
                require_equal(comparisons, metadata.precision)
            for suffix in reversed(kind.suffixes):
                with open(unchecked.with_suffix(suffix), "rb") as source:
                    target = path.with_suffix(suffix)
                    atomic_write(
                        target, lambda file, source=source: shutil.copyfileobj(source, file)
                    )
    except OSError as error:
        raise cannot_be_written(path, error) from error


def metadata_of(loaded: LoadedModel, precision: str = "fp32") -> ExportMetadata:
    """The description of a file that is exported from a checkpoint."""
    names = loaded.class_names or numbered_names(loaded.model.num_classes)
    return ExportMetadata(
        tuple(names), loaded.short_edge, loaded.max_size, loaded.image_format, precision
    )


def check_output(path: str | os.PathLike, format: str, precision: str, *, force: bool) -> None:
    """Check that a file of the format and precision can be written there.

    Raises:
        InputError: if it exists, has another suffix, there is no such folder, or the format does
            not have the precision.
    """
    if precision == "int8" and FORMATS[format].quantize is None:
        raise InputError(f"There is no int8 for {format}; choose onnx or openvino.")
    path = Path(path)
    suffixes = FORMATS[format].suffixes
    if path.suffix != suffixes[0]:
        raise InputError(f"{path}: the name of a file of {format} has to end in {suffixes[0]}.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no such folder; make it first.")
    for file in map(path.with_suffix, suffixes):
        if file.exists() and not force:
            raise InputError(f"{file} exists: choose another name, or overwrite it with --force.")
