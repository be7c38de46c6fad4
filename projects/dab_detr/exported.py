"""What an exported file says about itself, and the input and output of all exported files.

Needs NumPy only, so that :mod:`dab_detr.onnx_predictor` runs without PyTorch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dab_detr import __version__
from dab_detr.errors import InputError

# key of the description in ONNX's metadata_props, OpenVINO's rt_info, torch.export's extra files
KEY = "dab_detr"
INPUTS = ("pixels", "image_sizes")
OUTPUTS = ("boxes", "scores", "labels")
PRECISIONS = ("fp32", "fp16", "int8")
_VERSION = 1


@dataclass(frozen=True)
class ExportMetadata:
    """The description in an exported file.

    Attributes:
        class_names: one for each label.
        short_edge, max_size: pixels; the resize rule: the shorter edge becomes ``short_edge``,
            unless the longer one would exceed ``max_size``. None: no resizing, no limit.
        image_format: order of the channels, "RGB" or "BGR".
        precision: "fp32", "fp16" or "int8".
        package_version: of dab_detr.
    """

    class_names: tuple[str, ...]
    short_edge: int | None
    max_size: int | None
    image_format: str = "RGB"
    precision: str = "fp32"
    package_version: str = __version__

    def to_json(self) -> str:
        """The text that :meth:`from_json` reads."""
        return json.dumps({"version": _VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, path: Any) -> "ExportMetadata":
        """Read the description of a file.

        Args:
            text: None or "" if the file has none. path: of the file, for messages.

        Raises:
            InputError: if there is no description, or one that cannot be read.
        """
        again = "export it with `dab-detr export`"
        if not text:
            raise InputError(
                f"{path} has no description of class names and image sizes, so it cannot be used "
                f"here: {again}."
            )
        try:
            content = json.loads(text)
            version = content.pop("version")
            if version != _VERSION:
                raise InputError(
                    f"{path} has version {version!r} of the description; this installation reads "
                    f"{_VERSION}: {again} of the same version."
                )
            return cls(**{**content, "class_names": tuple(content["class_names"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"The description in {path} cannot be read: {again}.") from error

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to resize an image to, as Detectron2's ``ResizeShortestEdge``."""
        if self.short_edge is None:
            return height, width
        scale = self.short_edge / min(height, width)
        # the edges are products in this order there, too: rounding decides about pixels
        if height < width:
            new_height, new_width = float(self.short_edge), scale * width
        else:
            new_height, new_width = scale * height, float(self.short_edge)
        if self.max_size is not None and max(new_height, new_width) > self.max_size:
            scale = self.max_size / max(new_height, new_width)
            new_height, new_width = new_height * scale, new_width * scale
        return int(new_height + 0.5), int(new_width + 0.5)


class Detections(NamedTuple):
    """The detections in one image, best first.

    Attributes:
        scores: float32 ``(n,)`` in 0..1. labels: int64 ``(n,)``, indices of ``class_names``.
        boxes_xyxy: float32 ``(n, 4)``, pixels of the resized image; may extend beyond it.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes_xyxy: np.ndarray


def model_inputs(images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of an exported file: the images padded to one size, and their sizes.

    Args:
        images: at least one, uint8 ``(C, H, W)``.

    Returns:
        ``pixels``, uint8 ``(B, C, H, W)``, and ``image_sizes``, int64 ``(B, 2)``.
    """
    images = [np.asarray(image) for image in images]
    sizes = np.array([image.shape[1:] for image in images], np.int64)
    pixels = np.zeros((len(images), images[0].shape[0], *sizes.max(axis=0)), np.uint8)
    for padded, image, (height, width) in zip(pixels, images, sizes):
        padded[:, :height, :width] = image
    return {"pixels": pixels, "image_sizes": sizes}


def detections(outputs: Mapping[str, np.ndarray]) -> list[Detections]:
    """The outputs of an exported file, image by image."""
    return [Detections(*x) for x in zip(outputs["scores"], outputs["labels"], outputs["boxes"])]
