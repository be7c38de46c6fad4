import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from dab_detr.visualization.predictions import draw_predictions, drawing_scale


class OneBox(torch.nn.Module):
    """Predicts two fixed boxes, of which one scores below the threshold."""

    def forward(self, batch):
        boxes = Boxes(torch.tensor([[8.0, 8.0, 56.0, 56.0], [20.0, 2.0, 40.0, 6.0]]))
        instances = Instances(
            (64, 64),
            pred_boxes=boxes,
            scores=torch.tensor([0.9, 0.2]),
            pred_classes=torch.tensor([0, 0]),
        )
        return [{"instances": instances} for _ in batch]


def changed(picture, image, box):
    """Share of the pixels along a box's border that differ from the image."""
    x0, y0, x1, y1 = (int(v) for v in box)
    border = np.zeros(image.shape[:2], bool)
    border[y0:y1, x0:x1] = True
    border[y0 + 4 : y1 - 4, x0 + 4 : x1 - 4] = False
    return (np.abs(picture.astype(int) - image).max(-1) > 40)[border].mean()


def test_predictions_are_left_and_ground_truth_right(tiny_shapes, tmp_path):
    _, name = tiny_shapes
    records = DatasetCatalog.get(name)
    loader = ([record] for record in records)
    model = OneBox().train()
    files = draw_predictions(model, loader, name, tmp_path / "out", count=3, score_threshold=0.5)
    assert len(files) == len(list((tmp_path / "out").iterdir())) == 3
    assert model.training
    for record, file in zip(records, files):
        both = np.asarray(Image.open(file))
        scale = both.shape[0] / 64
        assert both.shape == (480, 960, 3)
        image = Image.open(record["file_name"]).resize((480, 480), Image.Resampling.BILINEAR)
        left, right, image = both[:, :480], both[:, 480:], np.asarray(image).astype(int)
        predicted = np.array([8, 8, 56, 56]) * scale
        unsure = np.array([20, 2, 40, 6]) * scale
        assert changed(left, image, predicted) > 0.5 > changed(right, image, predicted)
        assert changed(left, image, unsure) < 0.5
        x, y, width, height = record["annotations"][0]["bbox"]
        truth = np.array([x, y, x + width, y + height]) * scale
        assert changed(right, image, truth) > 0.5


@pytest.mark.parametrize(
    "height, width, scale",
    [
        (64, 64, 7.5),
        (48, 64, 10),
        (800, 1333, 1),
        (4, 2000, 2.048),
        (9, 4097, 1),
        (200, 80000, 0.75),
    ],
)
def test_pictures_of_small_images_are_enlarged_within_what_can_be_drawn(height, width, scale):
    for shape in ((height, width, 3), (width, height, 3)):
        assert drawing_scale(np.zeros(shape, np.uint8)) == pytest.approx(scale)
