"""Detects objects in images with a trained model."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from dab_detr.errors import InputError
from dab_detr.inference.inputs import Prepared, is_single, read_pixels, resize
from dab_detr.inference.loading import (
    IMAGE_FORMAT,
    RESIZE,
    LoadedModel,
    load,
    numbered_names,
)
from dab_detr.inference.results import PredictedInstances
from dab_detr.inference.runtime import Found, FoundLayers, ModelRuntime
from dab_detr.inference.runtimes import ExportedRuntime, is_exported, load_exported
from dab_detr.inference.selection import SCORE_THRESHOLD, Selection
from dab_detr.modeling.meta_arch import DABDETR

_MAX_PIXELS = 100_000_000


class Predictor:
    """Detects objects in images.

    Images are read and resized as in an evaluation, and give the same detections.

    Args:
        weights: a trained model: a checkpoint, as :func:`~dab_detr.inference.loading.load` takes
            it; an exported file (``.onnx``, ``.xml``, ``.pt2``), which says by itself how images
            are resized; or a :class:`DABDETR` in memory, which is not changed.
        config: for checkpoints that do not contain the model's config, see
            :func:`~dab_detr.inference.loading.load`.
        device: None: a GPU if there is one; for a model in memory, the one that it is on.
        class_names: one per class; None: the checkpoint's; if there are none, "class 0" and so on.
        short_edge: pixels to which the shorter side of an image is resized; 0: images are not
            resized. None: the checkpoint's; for a model in memory 800.
        max_size: the most pixels of the longer side. None: the checkpoint's; for a model in memory
            1333.
        image_format: of the model's images, "RGB", "BGR" or another format of Detectron2. None: the
            checkpoint's; for a model in memory "RGB".
        bf16: compute in mixed precision (bfloat16), faster on most GPUs; results differ slightly.
        optimize: compute with an :func:`inference_copy`; results differ only by rounding.
        max_pixels: larger files, bytes and PIL images are refused before they are decoded. (Pillow
            has a limit of its own, ``PIL.Image.MAX_IMAGE_PIXELS``, whose double is always refused.)
        trust: load ``.pt2`` files, too, which can run any code while they are loaded.

    Raises:
        TypeError: for another model, such as one wrapped in DistributedDataParallel.
        InputError: if the checkpoint or the config cannot be read, for a device that there is not,
            or for another number of class names.
    """

    def __init__(
        self,
        weights: str | os.PathLike | nn.Module,
        config: str | os.PathLike | DictConfig | None = None,
        *,
        device: str | torch.device | None = None,
        class_names: Sequence[str] | None = None,
        short_edge: int | None = None,
        max_size: int | None = None,
        image_format: str | None = None,
        bf16: bool = False,
        optimize: bool = False,
        max_pixels: int = _MAX_PIXELS,
        trust: bool = False,
    ):
        if isinstance(weights, str | os.PathLike) and is_exported(weights):
            if config is not None or device not in (None, "cpu", torch.device("cpu")) or bf16:
                raise InputError(
                    f"{weights} is an exported file, which has its own config and precision and "
                    "runs on the CPU: leave config, device and bf16 out."
                )
            self.runtime = ExportedRuntime(load_exported(weights, trust=trust))
            loaded = self.runtime.metadata
            num_classes = len(loaded.class_names)
        else:
            if isinstance(weights, nn.Module):
                loaded = _loaded(weights, device)
            else:
                loaded = load(weights, config, device)
            self.runtime = ModelRuntime(loaded.model, bf16=bf16, optimize=optimize)
            num_classes = loaded.model.num_classes
        names = class_names or loaded.class_names or numbered_names(num_classes)
        if len(names) != num_classes:
            raise InputError(
                f"class_names has {len(names)} names, but the model has {num_classes} classes."
            )
        self.class_names = tuple(names)
        self.image_format = image_format or loaded.image_format
        self.max_pixels = max_pixels
        self._short_edge = (loaded.short_edge if short_edge is None else short_edge) or None
        self._max_size = max_size or loaded.max_size

    @classmethod
    def from_pretrained(cls, name: str, **settings: Any) -> "Predictor":
        """The same as ``Predictor(name, **settings)``."""
        return cls(name, **settings)

    def __call__(
        self,
        images: Any,
        *,
        score_threshold: float | Sequence[float] | Mapping[str | int, float] = SCORE_THRESHOLD,
        top_k: int | None = None,
        classes: Iterable[str | int] | str | int | None = None,
        channels: str = "RGB",
        batch_size: int = 4,
    ) -> PredictedInstances | list[PredictedInstances]:
        """Detect objects in one image, or in each image of an iterable.

        Args:
            images: an image, or an iterable of images: path, bytes or open file, PIL image, array
                ``(H, W, C)`` or tensor ``(C, H, W)``, uint8; see
                :func:`~dab_detr.inference.inputs.read_pixels`.
            score_threshold, top_k, classes: see :class:`~dab_detr.inference.selection.Selection`.
                ``score_threshold=0`` gives everything that the model finds, as in an evaluation.
            channels: order of the channels of arrays and tensors: "BGR" for those of OpenCV.
            batch_size: how many images of an iterable are read, and, if they have the same size
                after resizing, computed together. The result does not depend on it, except for
                rounding.

        Returns:
            The detections at the image's own size: Detectron2's ``Instances`` with class names, not
            a dict. A list of them for an iterable.

        Raises:
            InputError: if an image cannot be read, or for a wrong value.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}; at least 1 is needed.")
        selection = self.selection(score_threshold=score_threshold, top_k=top_k, classes=classes)
        if is_single(images):
            (found,) = self.detect([self.prepare(images, channels=channels)], selection)
            return found
        prepared = (self._prepare_one(*x, channels) for x in enumerate(images))
        return [
            found
            for batch in batches(prepared, batch_size)
            for found in self.detect(batch, selection)
        ]

    def selection(self, **settings: Any) -> Selection:
        """Which detections to keep; see :class:`~dab_detr.inference.selection.Selection`."""
        return Selection(self.class_names, **settings)

    def prepare(self, image: Any, *, channels: str = "RGB") -> Prepared:
        """Read one image and resize it; may be called in several threads.

        Raises:
            InputError: if it cannot be read.
        """
        pixels = read_pixels(
            image, self.image_format, channels=channels, max_pixels=self.max_pixels
        )
        try:
            resized = resize(pixels, self._short_edge, self._max_size)
        except ValueError as error:
            name = f"The image {image}" if isinstance(image, str | os.PathLike) else "The image"
            raise InputError(f"{name} cannot be used: {error}") from error
        return Prepared(pixels, resized)

    def detect(self, images: Sequence[Prepared], selection: Selection) -> list[PredictedInstances]:
        """Detect objects in prepared images; see :meth:`__call__`.

        Those of equal size are computed together. Others are not: with any DETR the padding of a
        batch changes the features at the border, and so the result would depend on the batch.
        """
        by_size: dict[torch.Size, list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.resized.shape, []).append(index)
        results = {}
        for indices in by_size.values():
            for index, found in zip(indices, self.runtime([images[i].resized for i in indices])):
                results[index] = self._result(images[index], found, selection)
        return [results[index] for index in range(len(images))]

    @property
    def num_layers(self) -> int:
        """How many decoder layers :meth:`detect_layers` shows; 0 for exported files."""
        return self.runtime.num_layers

    def detect_layers(self, image: Prepared, selection: Selection) -> PredictedInstances:
        """Detect objects in a prepared image, with what each decoder layer says of them.

        Not for exported files, which have only the last layer's detections.

        Returns:
            The same as :meth:`detect`, with two more fields. ``layer_boxes``, float32
            ``(n, L + 1, 4)``, xyxy in pixels of the image: the anchor before the first layer, then
            the box of each layer; ``(n, L, 4)`` for queries without anchors. ``layer_scores``,
            float ``(n, L)`` in 0..1: each layer's score of the detection's class.
        """
        return self._result(image, self.runtime.layers(image.resized), selection)

    def _result(
        self, image: Prepared, found: Found | FoundLayers, selection: Selection
    ) -> PredictedInstances:
        instances = found.instances(tuple(image.resized.shape[-2:]), image.pixels.shape[:2])
        selected = selection(instances.to("cpu"))
        return PredictedInstances(selected.image_size, self.class_names, **selected.get_fields())

    def _prepare_one(self, index: int, image: Any, channels: str) -> Prepared:
        try:
            return self.prepare(image, channels=channels)
        except InputError as error:
            raise InputError(f"Image {index} of the given ones: {error}") from error


def _loaded(model: nn.Module, device: str | torch.device | None) -> LoadedModel:
    if not isinstance(model, DABDETR):
        raise TypeError(
            f"Predictor takes a DABDETR, not {type(model).__name__}: give it the .module of a "
            "wrapped model."
        )
    if device is not None:
        model = copy.deepcopy(model).to(device)
    return LoadedModel(model, None, **RESIZE, image_format=IMAGE_FORMAT)


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` items; the last may be shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
