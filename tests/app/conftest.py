"""The page of a small model."""

import pytest
import torch
from detections import as_after_training
from pages import Counted, save_blocks, serving

from dab_detr import load_model
from dab_detr.app.examples import find_examples
from dab_detr.app.page import build_page


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """The folder that gradio keeps the files of the page in."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def predictor(trained):
    """Finds much with very different scores; its class names are code to a careless page."""
    torch.manual_seed(0)
    model = as_after_training(load_model(trained / "model_final.pth", device="cpu"))
    names = ["<b>rectangle</b>", "$ellipse$", "tri*ang*le"]
    return Counted(model, class_names=names, short_edge=72, max_size=96)


@pytest.fixture
def image(tmp_path):
    return save_blocks(tmp_path / "street.png", 1)


@pytest.fixture(scope="module")
def example_folder(tmp_path_factory):
    """Two images, and two files that are none."""
    folder = tmp_path_factory.mktemp("examples")
    save_blocks(folder / "a.png", 5)
    save_blocks(folder / "c.bmp", 6, 120)
    (folder / "b.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("no image either")
    return folder


@pytest.fixture(scope="module")
def address_of_page(predictor, example_folder, uploads):
    pytest.importorskip("gradio")
    with serving(build_page(predictor, find_examples(example_folder))) as address:
        yield address
