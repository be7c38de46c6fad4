"""The model on tensors: without Detectron2 and fvcore, and predicting what the model does."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from dab_detr.modeling import select_detections
from dab_detr.modeling.core import shrink_mask

ALONE = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("detectron2", "fvcore"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocker())
import torch
from torch import nn
from dab_detr.modeling import (
    AnchorBoxQueries, Core, DABTransformer, Decoder, Encoder, HungarianMatcher, SetCriterion,
    Targets, select_detections,
)

class Stem(nn.Conv2d):
    def forward(self, pixels):
        return {"stem": super().forward(pixels)}

sizes = dict(d_model=16, num_heads=2)
transformer = DABTransformer(
    encoder=Encoder(1, ffn_dim=16, **sizes),
    queries=AnchorBoxQueries(5, num_layers=2, **sizes),
    decoder=Decoder(2, 3, ffn_dim=16, **sizes),
    d_model=16,
)
transformer.reset_parameters()
core = Core(Stem(3, 8, 4, 4), "stem", nn.Conv2d(8, 16, 1), transformer)
pixels, mask = torch.randn(2, 3, 32, 48), torch.zeros(2, 32, 48, dtype=torch.bool)
mask[1, 20:] = True
found = select_detections(*core.eval()(pixels, mask), 4)
assert found.boxes_xyxy.shape == (2, 4, 4)
targets = Targets(torch.tensor([0, 2]), torch.rand(2, 4) * 0.4 + 0.2, [1, 1])
outputs = core.train().outputs(pixels, mask, all_layers=True)
sum(SetCriterion(HungarianMatcher())(outputs, targets).values()).backward()
try:
    import dab_detr.modeling.meta_arch
except ImportError as error:
    print("blocked:", error)
"""


def test_it_works_where_detectron2_and_fvcore_cannot_be_imported():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "blocked:" in result.stdout


@pytest.mark.parametrize("sizes", [((64, 64), (48, 80)), ((64, 64), (64, 64))], ids=str)
@torch.no_grad()
def test_it_predicts_what_the_model_does(small_model, batch, sizes):
    model = small_model(num_select=12).eval()
    inputs = batch(sizes)
    images = model.preprocess_image(inputs)
    height, width = images.tensor.shape[-2:]
    mask = torch.ones(2, height, width, dtype=torch.bool)
    for index, (rows, columns) in enumerate(sizes):
        mask[index, :rows, :columns] = False
    found = select_detections(*model.core(images.tensor, mask), 12)
    for index, (expected, (rows, columns)) in enumerate(zip(model(inputs), sizes)):
        instances = expected["instances"]
        torch.testing.assert_close(found.scores[index], instances.scores, atol=1e-5, rtol=0)
        boxes = found.boxes_xyxy[index] * torch.tensor([columns, rows, columns, rows])
        boxes[:, 0::2].clamp_(0, columns)
        boxes[:, 1::2].clamp_(0, rows)
        torch.testing.assert_close(boxes, instances.pred_boxes.tensor, atol=1e-3, rtol=0)


def test_its_modules_are_the_models(small_model):
    model = small_model()
    core = model.core
    assert core.backbone is model.backbone and core.transformer is model.transformer
    # a view: the model's own state has everything once
    assert not [name for name in model.state_dict() if name.startswith("core.")]


@pytest.mark.parametrize(
    "pixels, cells", [((64, 100), (8, 13)), ((97, 131), (7, 9)), ((9, 9), (9, 9))]
)
def test_a_mask_shrinks_by_nearest_neighbour(pixels, cells):
    mask = torch.rand(2, *pixels) > 0.5
    expected = F.interpolate(mask[:, None].float(), size=cells, mode="nearest")[:, 0].bool()
    assert torch.equal(shrink_mask(mask, cells), expected)
