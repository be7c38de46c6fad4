"""Serves the page to try a model, inside the tests' own process."""

import contextlib
import threading

import numpy as np
from PIL import Image

from dab_detr import Predictor
from dab_detr.app.server import address, create_app, listen


def save_blocks(path, seed, width=96, height=72):
    """An image of coloured blocks, with pixels that survive the way through a browser."""
    small = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST).save(path)
    return path


@contextlib.contextmanager
def serving(page):
    """Serves a page inside; gives its address."""
    import uvicorn

    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(create_app(page), log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join()


class Counted(Predictor):
    """A predictor that counts its images, and notes whether two were computed at one time."""

    count = 0
    busy = 0
    most_busy = 0

    def detect_layers(self, image, selection):
        self.count += 1
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            return super().detect_layers(image, selection)
        finally:
            self.busy -= 1
