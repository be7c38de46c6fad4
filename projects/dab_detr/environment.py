"""Describes what is installed, without importing it."""

import importlib
import importlib.metadata
import importlib.util
import platform
import re
from pathlib import Path

import dab_detr

# distribution -> what needs it
_OPTIONAL = {
    "timm": "backbones of timm, ViT and MViTv2",
    "faster-coco-eval": "faster evaluation",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export to ONNX and its use",
    "openvino": "export to OpenVINO and its use",
    "nncf": "export in int8",
    "supervision": "predictions as supervision.Detections",
    "submitit": "training under SLURM",
    "transformers": "comparisons with its DAB-DETR in tests and benchmark",
    "pytest": "running the tests",
    "ruff": "checking the style",
}
_REQUIRED = (
    "torch",
    "torchvision",
    "fvcore",
    "iopath",
    "omegaconf",
    "hydra-core",
    "pycocotools",
    "scipy",
    "numpy",
    "tabulate",
    "tqdm",
    "matplotlib",
    "pillow",
    "tensorboard",
    "safetensors",
)


def describe(*, check: bool = False) -> list[tuple[str, str]]:
    """Pairs of a package's name and its description, in the order to print them.

    Args:
        check: import PyTorch and Detectron2, which takes seconds, to see whether they work and
            which GPUs there are.
    """
    rows = [
        ("dab_detr", f"{dab_detr.__version__} in {Path(dab_detr.__file__).parent}"),
        ("Python", platform.python_version()),
        ("detectron2", _detectron2(check)),
        *((name, _version(name) or "missing") for name in _REQUIRED),
        ("CUDA", _cuda(check)),
    ]
    for name, use in _OPTIONAL.items():
        rows.append((name, _version(name) or f"missing (optional, for {use})"))
    return rows


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _detectron2(check: bool) -> str:
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return "missing: run `make setup`, or see its installation guide"
    if check:
        try:
            importlib.import_module("detectron2")
        except Exception as error:
            return f"found, but its import fails with {type(error).__name__}: {error}"
    folder = Path(spec.origin).parent
    if "geowatch_tpl" in folder.parts:
        kind = "pure-Python copy (from geowatch)"
    else:
        kind = "official"
    operators = "with" if any(folder.glob("_C.*")) else "without"
    version = _assigned(folder / "__init__.py", "__version__") or "unknown version"
    return f"{version}, {kind}, {operators} compiled operators, in {folder}"


def _cuda(check: bool) -> str:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "unknown without torch"
    if not check:
        version = _assigned(Path(spec.origin).parent / "version.py", "cuda")
        return f"torch is built for {version or 'CPUs only'}; --check looks for GPUs"
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return "no GPU: everything runs on the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}; {', '.join(names)}"


def _assigned(path: Path, name: str) -> str | None:
    """The string that a Python file assigns to a name, without running the file."""
    found = re.search(rf"^{name}\b[^=\n]*= *[\"']([^\"']+)", path.read_text(), re.MULTILINE)
    return found[1] if found else None
