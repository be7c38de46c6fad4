"""Detection with an exported ONNX file; needs NumPy, Pillow and onnxruntime, and no PyTorch.

::

    from dab_detr.onnx_predictor import OnnxPredictor

    predictor = OnnxPredictor("model.onnx")
    found = predictor("street.jpg", score_threshold=0.5)
"""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from dab_detr.errors import InputError, one_line
from dab_detr.exported import KEY, OUTPUTS, Detections, ExportMetadata, detections, model_inputs


class OnnxModel:
    """An ONNX file on resized images.

    Args:
        path: of a file that ``dab-detr export`` wrote.
        providers: onnxruntime's execution providers, in order of preference.
        threads: number of threads on the CPU; None: onnxruntime's choice.

    Attributes:
        metadata: see :class:`dab_detr.exported.ExportMetadata`.
        computes: what runs it and in which precision.

    Raises:
        InputError: if the file cannot be read or has no description.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        *,
        threads: int | None = None,
    ):
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise InputError(f"{path} needs onnxruntime: pip install onnxruntime.") from error

        if not os.path.isfile(path):
            raise InputError(f"There is no file {path}.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=list(providers)
            )
        # onnxruntime's exceptions have no common class but this
        except Exception as error:
            reason = one_line(error, with_type=False)[:200]
            raise InputError(f"{path} cannot be loaded by onnxruntime: {reason}") from error
        texts = self._session.get_modelmeta().custom_metadata_map
        self.metadata = ExportMetadata.from_json(texts.get(KEY), path)
        self.computes = f"onnxruntime {onnxruntime.__version__}, {self.metadata.precision}"

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect in images that are resized already: uint8 ``(C, H, W)``, of any sizes."""
        if not len(images):
            return []
        outputs = self._session.run(list(OUTPUTS), model_inputs(images))
        return detections(dict(zip(OUTPUTS, outputs)))


class OnnxPredictor:
    """Detects in image files with an ONNX file.

    Args:
        path, providers: see :class:`OnnxModel`.
    """

    def __init__(
        self, path: str | os.PathLike, providers: Sequence[str] = ("CPUExecutionProvider",)
    ):
        self.model = OnnxModel(path, providers)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.model.metadata.class_names

    def __call__(
        self, image: str | os.PathLike | Image.Image | np.ndarray, *, score_threshold: float = 0.0
    ) -> Detections:
        """Detect in one image.

        Args:
            image: a file, a Pillow image, or RGB pixels, uint8 ``(H, W, 3)``.
            score_threshold: lowest score to return.

        Returns:
            Boxes in pixels of the image itself, within it.

        Raises:
            InputError: if the file cannot be read.
        """
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        elif not isinstance(image, Image.Image):
            image = _open(image)
        metadata = self.model.metadata
        height, width = metadata.resized(image.height, image.width)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized)
        if metadata.image_format == "BGR":
            pixels = pixels[:, :, ::-1]
        (found,) = self.model([pixels.transpose(2, 0, 1)])
        kept = found.scores >= score_threshold
        original = np.array([image.width, image.height] * 2, np.float32)
        boxes = found.boxes_xyxy * (original / np.array([width, height] * 2, np.float32))
        boxes = np.clip(boxes, 0, original)
        return Detections(found.scores[kept], found.labels[kept], boxes[kept])


def _open(path: str | os.PathLike) -> Image.Image:
    """Read an image file, upright."""
    try:
        image = Image.open(path)
        image.load()
        upright = ImageOps.exif_transpose(image)
    # decoders fail in many ways for damaged files
    except Exception as error:
        raise InputError(f"The image {path} cannot be read: {error}.") from error
    if upright.mode.startswith("I"):
        # Pillow would cut 16 bits off at 255
        values = np.asarray(upright).astype(np.int64)
        upright = Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))
    return upright
