"""Published weights by name."""

import difflib
from dataclasses import dataclass

_HUB = "hf://IDEA-Research/dab-detr-resnet-50"
_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download"
_R50, _R50_3PAT, _R101 = 43_668_690, 43_669_458, 62_608_594


@dataclass(frozen=True)
class Published:
    """Weights of a model for COCO's classes.

    Attributes:
        config: name of this project's config for them.
        source: a repository of the Hugging Face hub, or the address of a file.
        ap: published AP on COCO val2017, in per cent.
        parameters: of the model with 80 classes.
        licence: SPDX identifier.
        sha256: of the file, in hexadecimal; None: not known.
    """

    config: str
    source: str
    ap: float
    parameters: int
    licence: str = "Apache-2.0"
    sha256: str | None = None


# The first ones are the authors' weights as converted by transformers, with the paper's AP; the
# others are detrex's, with its AP.
PUBLISHED = {
    "dab_detr_r50": Published("dab_detr_r50_50ep.py", _HUB, 42.2, _R50),
    "dab_detr_r50_3pat": Published("dab_detr_r50_3pat_50ep.py", f"{_HUB}-pat3", 42.6, _R50_3PAT),
    "dab_detr_r50_dc5": Published("dab_detr_r50_dc5_50ep.py", f"{_HUB}-dc5", 44.5, _R50),
    "dab_detr_r50_dc5_3pat": Published(
        "dab_detr_r50_dc5_3pat_50ep.py", f"{_HUB}-dc5-pat3", 45.7, _R50_3PAT
    ),
    "dab_detr_r50_dc5_fixedxy": Published(
        "dab_detr_r50_dc5_fixedxy_50ep.py", f"{_HUB}-dc5-fixxy", 44.7, _R50
    ),
    "detrex_dab_detr_r50": Published(
        "dab_detr_r50_50ep.py", f"{_DETREX}/v0.1.0/dab_detr_r50_50ep.pth", 43.3, _R50
    ),
    "detrex_dab_detr_r101": Published(
        "dab_detr_r101_50ep.py", f"{_DETREX}/v0.1.0/dab_detr_r101_50ep.pth", 44.0, _R101
    ),
    "detrex_dab_detr_r50_3pat": Published(
        "dab_detr_r50_3pat_50ep.py",
        f"{_DETREX}/v0.3.0/converted_dab_detr_r50_3patterns.pth",
        42.8,
        _R50_3PAT,
    ),
    "detrex_dab_detr_r50_dc5": Published(
        "dab_detr_r50_dc5_50ep.py", f"{_DETREX}/v0.3.0/converted_dab_detr_r50_dc5.pth", 44.6, _R50
    ),
    "detrex_dab_detr_r50_dc5_3pat": Published(
        "dab_detr_r50_dc5_3pat_50ep.py",
        f"{_DETREX}/v0.3.0/converted_dab_detr_r50_dc5_3patterns.pth",
        45.7,
        _R50_3PAT,
    ),
}


def hint(name: str) -> str:
    """The end of a sentence about a file that does not exist, with the names that are close."""
    close = difflib.get_close_matches(name, PUBLISHED, n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return "; dab-detr zoo lists the names of published weights."
