"""One loader for all exported files: resized images in, detections out."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dab_detr.errors import InputError, one_line
from dab_detr.exported import KEY, OUTPUTS, Detections, ExportMetadata, detections, model_inputs
from dab_detr.inference.runtime import Found
from dab_detr.onnx_predictor import OnnxModel

SUFFIXES = (".onnx", ".xml", ".pt2")


class Runtime(Protocol):
    """An exported file that is loaded.

    Attributes:
        metadata: resize rule, order of the channels, class names, precision.
        computes: what runs it and in which precision, for people.
    """

    metadata: ExportMetadata
    computes: str

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect in images that are resized already.

        Args:
            images: uint8 ``(C, H, W)``, of any sizes; a batch.
        """


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a file is an exported one, by its name."""
    return Path(path).suffix in SUFFIXES


def load_exported(path: str | os.PathLike, *, trust: bool = False) -> Runtime:
    """Load an exported file for the CPU.

    It computes with as many threads as PyTorch has at this moment, see
    :func:`torch.set_num_threads` and ``OMP_NUM_THREADS``.

    Args:
        path: ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2`` (torch.export).
        trust: load ``.pt2``, too: such a file can run any code while it is loaded.

    Raises:
        InputError: for another kind of file, one that cannot be read, one without description, or
            a ``.pt2`` without ``trust``.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is not an exported file: those end in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    if path.suffix == ".onnx":
        return OnnxModel(path, threads=torch.get_num_threads())
    if path.suffix == ".xml":
        return OpenVINOModel(path)
    if not trust:
        raise InputError(
            f"{path} can run any code while it is loaded: if you trust whoever made it, load it "
            "with trust=True."
        )
    return TorchExportModel(path)


class ExportedRuntime:
    """An exported file in the place of :class:`~dab_detr.inference.runtime.ModelRuntime`."""

    # a file has only the last layer's detections
    num_layers = 0

    def __init__(self, file: Runtime):
        self._file = file
        self.metadata = file.metadata
        self.computes = file.computes

    def __call__(self, images: Sequence[Tensor]) -> list[Found]:
        """See :meth:`ModelRuntime.__call__`."""
        found = self._file([image.numpy() for image in images])
        return [Found(*map(torch.from_numpy, of_image)) for of_image in found]


@functools.cache
def openvino_core():
    """OpenVINO's ``Core``, which stays for the life of the process.

    Its CPU plugin gives the thread that loads it a signal stack. If another thread frees the
    plugin, the stack is gone, and the next signal, such as Ctrl-C's, ends the process.
    """
    import openvino

    return openvino.Core()


class OpenVINOModel:
    """An OpenVINO file; see :class:`Runtime`.

    What is not int8 is computed in float32, also where the processor prefers bfloat16. That holds
    for files with weights in float16, too: computing in float16 moves boxes by more than a pixel.
    """

    def __init__(self, path: Path):
        try:
            core = openvino_core()
        except ModuleNotFoundError as error:
            raise InputError(f"{path} needs OpenVINO: pip install openvino.") from error

        import openvino

        model = _loaded(path, lambda: core.read_model(path))
        text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
        self.metadata = ExportMetadata.from_json(text, path)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        version = openvino.get_version().partition("-")[0]
        self.computes = f"OpenVINO {version}, {self.metadata.precision}, computing in f32"

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """See :class:`Runtime`."""
        if not len(images):
            return []
        self._request.infer(model_inputs(images))
        # a copy: the next call reuses the memory
        outputs = {name: self._request.get_tensor(name).data.copy() for name in OUTPUTS}
        return detections(outputs)


class TorchExportModel:
    """A file of ``torch.export``; see :class:`Runtime`."""

    def __init__(self, path: Path):
        texts = {KEY: ""}
        program = _loaded(path, lambda: torch.export.load(path, extra_files=texts))
        self.metadata = ExportMetadata.from_json(texts[KEY], path)
        self._module = program.module()
        self.computes = f"PyTorch {torch.__version__}, {self.metadata.precision}"

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """See :class:`Runtime`."""
        if not len(images):
            return []
        inputs = {name: torch.from_numpy(x) for name, x in model_inputs(images).items()}
        with torch.no_grad():
            outputs = self._module(*inputs.values())
        return detections({name: x.numpy() for name, x in zip(OUTPUTS, outputs)})


def _loaded(path: Path, load: Callable):
    """The result of ``load``, whose errors become an :class:`InputError`."""
    try:
        return load()
    # of libraries, for damaged files
    except Exception as error:
        reason = one_line(error, with_type=False)[:200]
        raise InputError(f"{path} cannot be loaded: {reason}") from error
