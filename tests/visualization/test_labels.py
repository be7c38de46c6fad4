"""Class names in pictures are text, in a font that has their letters."""

import logging
import unicodedata

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import Image

from dab_detr.visualization.curves import draw_curves
from dab_detr.visualization.labels import LabelVisualizer
from dab_detr.visualization.predictions import draw_predictions


def picture(*names):
    """Of a class name, the first, in the corner of a black image."""
    metadata = Metadata().set(thing_classes=list(names))
    visualizer = LabelVisualizer(np.zeros((60, 240, 3), np.uint8), metadata)
    visualizer.draw_text(visualizer.class_names[0], (120, 10), font_size=20)
    return visualizer.get_output().get_image()


@pytest.mark.parametrize("name", ["$5 $10", "a$b_{c}$", "$\\frac{1}{$", "x_1 ^2 $ \\alpha $"])
def test_names_are_no_formulas(name):
    """A formula would draw no dollar, so that these two would be the same, or fail."""
    assert (picture(name) != picture(name.replace("$", ""))).any()
    assert "$" in name


def test_letters_that_the_usual_font_lacks_come_from_another():
    sans = font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))
    other = next(f for f in font_manager.fontManager.ttflist if f.name == "STIXGeneral")
    usual, letters = (set(FT2Font(path).get_charmap()) for path in (sans, other.fname))
    lacking = [x for x in map(chr, sorted(letters - usual)) if unicodedata.category(x) == "Sm"]
    # the frame of a letter that is missing is the same for every letter
    assert (picture(lacking[0], "cat") != picture(lacking[1], "cat")).any()


def test_a_font_of_last_resort_is_none(caplog):
    # for private use, in no other font
    with caplog.at_level(logging.WARNING):
        assert (picture("\U0010abcd", "dog") == picture("class 0")).all()
    assert "No installed font has all characters" in caplog.text


def test_without_a_font_the_class_has_its_number_which_is_said_once(caplog, monkeypatch):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    with caplog.at_level(logging.WARNING):
        first, second = picture("\u732b", "dog"), picture("\u732b", "dog")
    assert (first == second).all() and (first == picture("class 0")).all()
    assert len(caplog.records) == 1 and "\u732b" in caplog.text


class Boxed(torch.nn.Module):
    def forward(self, batch):
        instances = Instances(
            (64, 64), pred_boxes=Boxes(torch.tensor([[8.0, 8.0, 56.0, 56.0]] * 2)),
            scores=torch.tensor([0.9, 0.9]),
            # the data set has no class 7
            pred_classes=torch.tensor([0, 7]),
        )  # fmt: skip
        return [{"instances": instances} for _ in batch]


@pytest.fixture
def named(tmp_path):
    """Two images of one name in two folders, with a class that would be a formula."""
    records = []
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "same.png"
        Image.new("RGB", (64, 64), (255 * number, 0, 0)).save(file)
        records.append(
            {
                "file_name": str(file), "image_id": number, "height": 64, "width": 64,
                "annotations": [
                    {"bbox": [4, 4, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
                ],
            }
        )  # fmt: skip
    DatasetCatalog.register("named", lambda: records)
    MetadataCatalog.get("named").thing_classes = ["$\\frac{1}$"]
    yield records
    DatasetCatalog.remove("named")
    MetadataCatalog.remove("named")


def test_pictures_of_images_of_one_name_are_kept_apart(named, tmp_path):
    files = draw_predictions(Boxed(), ([r] for r in named), "named", tmp_path / "out", count=2)
    assert [file.name for file in files] == ["same.png", "same-2.png"]
    first, second = (np.asarray(Image.open(file)).astype(int) for file in files)
    assert (second - first)[..., 0].mean() > 100


def test_curves_of_data_sets_with_any_name_are_drawn(tmp_path):
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"iteration": 0, "total_loss": 1, "loss_class": 1, "bbox/$a$b$/AP": 3}\n')
    assert draw_curves(metrics, tmp_path / "curve.png")
