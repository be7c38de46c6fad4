"""Packaging. Sources are in projects/dab_detr, configs in configs; both install as `dab_detr`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PACKAGE = ROOT / "projects" / "dab_detr"


def config_packages() -> dict[str, str]:
    """Each folder of configs as a package without code: import name -> folder."""
    folders = [ROOT / "configs", *(path for path in (ROOT / "configs").rglob("*") if path.is_dir())]
    relative = [folder.relative_to(ROOT) for folder in folders if folder.name != "__pycache__"]
    return {".".join(("dab_detr", *path.parts)): path.as_posix() for path in relative}


CONFIGS = config_packages()
TIMM = ["timm>=1.0"]
FAST_EVAL = ["faster-coco-eval>=1.6"]
HUB = ["huggingface_hub>=1.0"]
SLURM = ["submitit>=1.5"]
BENCHMARK = ["transformers>=5"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20", "openvino>=2025.0", "nncf>=2.15"]
SUPERVISION = ["supervision>=0.25"]
APP = ["gradio>=6"]
# transformers has another implementation to compare with, scikit-learn handwritten digits
TEST = [
    "pytest>=9.2",
    "pytest-xdist>=3.6",
    "scikit-learn",
    "playwright>=1.50",
    *TIMM,
    *FAST_EVAL,
    *HUB,
    *SLURM,
    *BENCHMARK,
    *SUPERVISION,
    *EXPORT,
    *APP,
]

setup(
    name="dab_detr",
    version=re.search(r'__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text())[1],
    description="DAB-DETR (dynamic anchor boxes as queries of a transformer) for Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages("projects"), *CONFIGS],
    package_dir={"dab_detr": "projects/dab_detr", **CONFIGS},
    package_data={name: ["*.py", "*.yaml"] for name in CONFIGS},
    # Detectron2 itself is not on PyPI: see README.md, "Install"
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "fvcore",
        "iopath",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "numpy",
        "scipy",
        # these two fail on annotation files without "info"
        "pycocotools!=2.0.9,!=2.0.10",
        "matplotlib",
        "pillow",
        "tabulate",
        "tensorboard",
        "tqdm",
        "safetensors",
    ],
    entry_points={"console_scripts": ["dab-detr = dab_detr.cli.main:main"]},
    extras_require={
        "timm": TIMM,
        "fast-eval": FAST_EVAL,
        "hub": HUB,
        "slurm": SLURM,
        "benchmark": BENCHMARK,
        "supervision": SUPERVISION,
        "export": EXPORT,
        "app": APP,
        "test": TEST,
        "dev": [*TEST, "ruff", "cosmic-ray>=8.4"],
    },
)
