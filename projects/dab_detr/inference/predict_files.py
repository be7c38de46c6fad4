"""Predicts for many images and videos, and writes pictures and videos of the detections."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from PIL import Image

from dab_detr.console import bar
from dab_detr.errors import InputError
from dab_detr.inference.inputs import Prepared
from dab_detr.inference.pipeline import ahead, threads
from dab_detr.inference.prediction_log import PredictionLog
from dab_detr.inference.predictor import Predictor, batches
from dab_detr.inference.results import PredictedInstances, save_picture
from dab_detr.inference.selection import Selection
from dab_detr.inference.sources import Source
from dab_detr.inference.video import VideoReader, VideoWriter
from dab_detr.visualization.predictions import draw_detections

_READING_THREADS = 2


class FilePredictions:
    """Predicts for files; decodes and draws in threads beside the computation.

    Args:
        predictor: computes.
        selection: which detections are drawn and logged.
        folder: for pictures and videos; existing ones are replaced.
        names: of the picture or video for each source's file.
        log: gets each finished file.
        batch_size: how many images are computed together.

    Attributes:
        failed: the files that cannot be read, with the reason.
    """

    def __init__(
        self,
        predictor: Predictor,
        selection: Selection,
        folder: Path,
        names: Mapping[str, str],
        log: PredictionLog,
        *,
        batch_size: int,
    ):
        self._predictor = predictor
        self._selection = selection
        self._folder = folder
        self._names = names
        self._log = log
        self._batch_size = batch_size
        self._ahead = 2 * batch_size
        self.failed: dict[str, str] = {}

    def run(self, sources: Sequence[Source]) -> None:
        """Predict for all sources, images first.

        Raises:
            InputError: if something cannot be written.
        """
        images = [source for source in sources if source.is_image]
        if images:
            self._predict_images(images)
        for source in sources:
            if not source.is_image:
                try:
                    self._predict_video(source)
                except _Unreadable as error:
                    self.failed[source.file] = str(error)

    def _predict_images(self, sources: Sequence[Source]) -> None:
        def read(source: Source) -> Prepared | _Unreadable:
            try:
                return self._predictor.prepare(source.file)
            except InputError as error:
                return _Unreadable(str(error))

        def readable() -> Iterator[tuple[Source, Prepared]]:
            everything = ahead(reading, read, sources, count=self._ahead)
            for source, prepared in zip(sources, everything):
                if isinstance(prepared, _Unreadable):
                    self.failed[source.file] = str(prepared)
                    progress.update()
                else:
                    yield source, prepared

        def write(computed: tuple[Source, Prepared, PredictedInstances]) -> dict[str, Any]:
            source, prepared, found = computed
            picture = Image.fromarray(self._drawn(prepared, found))
            save_picture(picture, self._folder / self._names[source.file])
            return self._record(source, [found])

        with (
            bar(total=len(sources), desc="images", unit="image") as progress,
            threads(_READING_THREADS) as reading,
            threads(1) as drawing,
        ):
            for record in ahead(drawing, write, self._computed(readable()), count=self._ahead):
                self._log.append(record)
                progress.update()

    def _predict_video(self, source: Source) -> None:
        is_camera = source.kind == "camera"
        try:
            reader = VideoReader(int(source.file) if is_camera else source.file)
        except InputError as error:
            raise _Unreadable(str(error)) from error
        writer = VideoWriter(self._folder / self._names[source.file], reader.rate)
        results: list[PredictedInstances] = []

        def read(_: None) -> Prepared | None:
            frame = reader.read()
            try:
                return frame if frame is None else self._predictor.prepare(frame, channels="BGR")
            except InputError as error:
                raise _Unreadable(f"The video {source.file} cannot be used: {error}") from error

        def frames() -> Iterator[tuple[Source, Prepared]]:
            for prepared in ahead(reading, read, repeat(None), count=self._ahead):
                if prepared is None:
                    return
                yield source, prepared

        def write(computed: tuple[Source, Prepared, PredictedInstances]) -> None:
            _, prepared, found = computed
            writer.write(self._drawn(prepared, found))
            results.append(found)

        def finish() -> None:
            if not results:
                raise _Unreadable(f"The video {source.file} has no frame that OpenCV can decode.")
            writer.finish()
            self._log.append(self._record(source, results))

        try:
            with (
                bar(total=reader.count or None, desc=source.file, unit="frame") as progress,
                closing(reader),
                threads(1) as reading,
                threads(1) as drawing,
            ):
                for _ in ahead(drawing, write, self._computed(frames()), count=self._ahead):
                    progress.update()
            finish()
        except KeyboardInterrupt:
            # how the recording of a camera ends
            if is_camera and results:
                finish()
            raise
        finally:
            writer.discard()

    def _computed(
        self, images: Iterator[tuple[Source, Prepared]]
    ) -> Iterator[tuple[Source, Prepared, PredictedInstances]]:
        for batch in batches(images, self._batch_size):
            results = self._predictor.detect([prepared for _, prepared in batch], self._selection)
            for (source, prepared), found in zip(batch, results):
                yield source, prepared, found

    def _drawn(self, prepared: Prepared, found: PredictedInstances) -> np.ndarray:
        pixels = np.asarray(prepared.pixels)
        rgb = convert_image_to_rgb(pixels, self._predictor.image_format)
        return draw_detections(np.ascontiguousarray(rgb), found, found.class_names)

    def _record(self, source: Source, results: Sequence[PredictedInstances]) -> dict[str, Any]:
        height, width = results[0].image_size
        frames = [found.coco_records() for found in results]
        return {
            "file": source.file,
            "output": self._names[source.file],
            "is_video": not source.is_image,
            "width": width,
            "height": height,
            "frames": [[_without_image(x) for x in records] for records in frames],
        }


class _Unreadable(Exception):
    """An input that cannot be read; the message says why."""


def _without_image(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "image_id"}
