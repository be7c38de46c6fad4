"""Says what is installed: ``python -m dab_detr.environment``."""

import importlib
import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import dab_detr

# distribution -> what is missing without it
_OPTIONAL = {
    "timm": "backbones of timm, ViT and MViTv2",
    "faster-coco-eval": "quicker evaluation",
    "submitit": "training under SLURM",
    "transformers": "comparing with its DAB-DETR in tests and benchmark",
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
    "matplotlib",
    "pillow",
    "tensorboard",
    "safetensors",
)


def describe() -> list[tuple[str, str]]:
    """Pairs of a part's name and what is known of it, in the order to print them."""
    rows = [
        ("dab_detr", f"{dab_detr.__version__} in {Path(dab_detr.__file__).parent}"),
        ("Python", platform.python_version()),
        ("detectron2", _detectron2()),
        *((name, _version(name) or "missing") for name in _REQUIRED),
        ("CUDA", _cuda()),
    ]
    for name, use in _OPTIONAL.items():
        rows.append((name, _version(name) or f"missing (optional, for {use})"))
    return rows


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _detectron2() -> str:
    if importlib.util.find_spec("detectron2") is None:
        return "missing: run `make setup`, or install it as its own documentation says"
    try:
        detectron2 = importlib.import_module("detectron2")
    except Exception as error:
        return f"found, but its import fails with {type(error).__name__}: {error}"
    folder = Path(detectron2.__file__).parent
    if "geowatch_tpl" in folder.parts:
        kind = "pure-Python copy (from geowatch)"
    else:
        kind = "official"
    compiled = importlib.util.find_spec("detectron2._C") is not None
    operators = "with" if compiled else "without"
    return f"{detectron2.__version__}, {kind}, {operators} compiled operators, in {folder}"


def _cuda() -> str:
    if importlib.util.find_spec("torch") is None:
        return "unknown without torch"
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return "no GPU: everything runs on the CPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}; {', '.join(names)}"


if __name__ == "__main__":
    for part, text in describe():
        print(f"{part:12} {text}")
