"""Reads and writes videos with OpenCV, which Detectron2 needs, too."""

import math
import os
from pathlib import Path

import cv2
import numpy as np

from dab_detr.errors import InputError
from dab_detr.files import UNFINISHED

_USUAL_RATE = 30.0


class VideoReader:
    """The frames of a video file or camera.

    Args:
        source: a path, or the number of a camera.

    Raises:
        InputError: if it cannot be opened.
    """

    def __init__(self, source: str | int):
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            what = f"camera {source}" if isinstance(source, int) else f"video {source}"
            raise InputError(f"The {what} cannot be opened by OpenCV.")

    @property
    def rate(self) -> float:
        """Frames per second; 30 if not known."""
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        return rate if math.isfinite(rate) and rate > 0 else _USUAL_RATE

    @property
    def count(self) -> int:
        """The number of frames as the file says; 0 if not known."""
        return max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def read(self) -> np.ndarray | None:
        """The next frame, uint8 BGR ``(H, W, 3)``; None at the end."""
        is_read, frame = self._capture.read()
        return frame if is_read else None

    def close(self) -> None:
        self._capture.release()


class VideoWriter:
    """Writes an MP4 file, without sound; it has its name only when it is complete.

    Args:
        path: of the file.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float):
        self._path, self._rate = path, rate
        self._unfinished = path.with_name(f".{path.stem}{UNFINISHED}{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._count = 0

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, uint8 RGB ``(H, W, 3)``, all of one size.

        Raises:
            InputError: if the file cannot be written.
        """
        if self._writer is None:
            height, width = frame.shape[:2]
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(
                str(self._unfinished), codec, self._rate, (width, height)
            )
            if not self._writer.isOpened():
                raise InputError(
                    f"{self._path} cannot be written by OpenCV: free disk space or choose another "
                    "folder."
                )
        self._writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
        self._count += 1

    def finish(self) -> None:
        """Complete the file.

        Raises:
            InputError: if frames are missing in it, which OpenCV does not say while it writes.
        """
        self._release()
        written = VideoReader(str(self._unfinished))
        count = written.count
        written.close()
        if count != self._count:
            raise InputError(
                f"Of {self._count} frames {count} could be written to {self._path}: free disk "
                "space or choose another folder."
            )
        os.replace(self._unfinished, self._path)

    def discard(self) -> None:
        """Remove what is not complete."""
        self._release()
        self._unfinished.unlink(missing_ok=True)

    def _release(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
