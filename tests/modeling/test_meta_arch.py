import pickle

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances

from dab_detr.modeling import DABDETR, select_detections


def test_is_registered():
    assert META_ARCH_REGISTRY.get("DABDETR") is DABDETR


def test_training_gives_losses_of_all_layers(small_model, batch):
    losses = small_model()(batch())
    names = {f"loss_{term}{layer}" for term in ("class", "bbox", "giou") for layer in ("", "_0")}
    assert losses.keys() == names
    sum(losses.values()).backward()


@pytest.mark.parametrize(
    "counts, sizes",
    [
        ((2, 0), ((64, 64), (48, 80))),
        ((0, 0), ((64, 64), (48, 80))),
        ((2, 3), ((64, 64), (64, 64))),
        ((25, 1), ((64, 64), (48, 80))),
    ],
    ids=["one image empty", "all images empty", "no padding", "more objects than queries"],
)
def test_unusual_batches_train(small_model, batch, counts, sizes):
    model = small_model()
    losses = model(batch(sizes, counts))
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_evaluation_gives_boxes_in_the_wanted_size(small_model, batch):
    model = small_model(num_select=12).eval()
    inputs = batch()
    inputs[1].update(height=96, width=160)  # twice the size that the model sees
    with torch.no_grad():
        small = model([{"image": inputs[1]["image"]}])[0]["instances"]
        results = [x["instances"] for x in model(inputs)]
    assert results[0].image_size == (64, 64)
    assert results[1].image_size == (96, 160)
    for found in results:
        height, width = found.image_size
        assert len(found) <= 12
        assert (found.scores.diff() <= 0).all()
        assert set(found.pred_classes.tolist()) <= {0, 1, 2}
        assert (found.pred_boxes.tensor >= 0).all()
        assert (found.pred_boxes.tensor <= torch.tensor([width, height, width, height])).all()
    with torch.no_grad():
        large = model([inputs[1]])[0]["instances"]
    torch.testing.assert_close(large.pred_boxes.tensor, small.pred_boxes.tensor * 2)


def test_selection_takes_the_best_pairs_of_query_and_class():
    class_logits, box_logits = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    found = select_detections(class_logits, box_logits, 5)
    for index in range(2):
        pairs = [(class_logits[index, q, c].item(), q, c) for q in range(6) for c in range(4)]
        for place, (logit, q, c) in enumerate(sorted(pairs, reverse=True)[:5]):
            x, y, w, h = box_logits[index, q].sigmoid().tolist()
            expected = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            assert found.boxes_xyxy[index, place].tolist() == pytest.approx(expected, abs=1e-6)
            score = torch.tensor(logit).sigmoid().item()
            assert found.scores[index, place].item() == pytest.approx(score)
            assert found.labels[index, place].item() == c


def test_selection_cannot_exceed_the_number_of_pairs():
    found = select_detections(torch.randn(1, 2, 3), torch.randn(1, 2, 4), 300)
    assert [x.shape[:2] for x in found] == [(1, 6)] * 3


def test_selected_boxes_become_pixels_of_their_image(small_model):
    model = small_model(num_select=5)
    class_logits, box_logits = torch.randn(2, 6, 3), torch.randn(2, 6, 4)
    sizes = [(100, 200), (50, 60)]
    tensors = select_detections(class_logits, box_logits, 5)
    found = model.inference(class_logits, box_logits, sizes)
    for index, (instances, (height, width)) in enumerate(zip(found, sizes)):
        assert instances.image_size == (height, width)
        expected = tensors.boxes_xyxy[index] * torch.tensor([width, height, width, height])
        torch.testing.assert_close(instances.pred_boxes.tensor, expected)
        assert torch.equal(instances.scores, tensors.scores[index])
        assert torch.equal(instances.pred_classes, tensors.labels[index])


def test_targets_are_relative_to_the_image_without_padding(small_model, batch):
    model = small_model()
    inputs = batch(((64, 64), (32, 80)), (0, 0))
    inputs[1]["instances"] = Instances(
        (32, 80),
        gt_boxes=Boxes(torch.tensor([[8.0, 4.0, 24.0, 12.0]])),
        gt_classes=torch.tensor([2]),
    )
    seen = []
    model.criterion.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    model(inputs)
    torch.testing.assert_close(seen[0].boxes_cxcywh, torch.tensor([[0.2, 0.25, 0.2, 0.25]]))
    assert seen[0].labels.tolist() == [2] and list(seen[0].counts) == [0, 1]


@pytest.mark.parametrize("training", [True, False])
def test_padding_reaches_the_transformer_in_training_and_testing(small_model, batch, training):
    model = small_model().train(training)
    seen = []
    model.transformer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    sizes = ((64, 64), (40, 100))
    model(batch(sizes))
    features, mask = seen[0]
    pixels = torch.ones(2, 64, 100)
    for index, (height, width) in enumerate(sizes):
        pixels[index, :height, :width] = 0
    expected = F.interpolate(pixels[:, None], size=features.shape[-2:], mode="nearest")[:, 0]
    assert torch.equal(mask, expected.bool())
    model(batch(((64, 64), (64, 64))))
    assert seen[1][1] is None


def test_images_are_normalised_channel_by_channel(small_model):
    model = small_model(pixel_mean=[10.0, 20.0, 30.0], pixel_std=[1.0, 2.0, 5.0]).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    image = torch.tensor([11, 24, 40], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)
    model([{"image": image}])
    assert seen[0][0, :, 5, 5].tolist() == [1, 2, 2]


def test_backbone_level_is_chosen_by_name(small_model):
    assert small_model(in_features="stem").input_proj.in_channels == 16
    assert small_model(in_features=["res2"]).input_proj.in_channels == 24
    with pytest.raises(ValueError, match=r"'res9'.*\['stem', 'res2'\]"):
        small_model(in_features=["res9"])
    with pytest.raises(ValueError, match="one level"):
        small_model(in_features=["stem", "res2"])


def test_a_backbone_that_wants_divisible_sizes_gets_them(small_model, batch, monkeypatch):
    model = small_model()
    monkeypatch.setattr(type(model.backbone), "size_divisibility", 32)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(batch(((40, 50), (60, 33))))
    assert seen[0].shape[-2:] == (64, 64)


def test_a_backbone_that_wants_squares_gets_them(small_model, batch, monkeypatch):
    model = small_model()
    constraints = {"size_divisibility": 32, "square_size": 128}
    monkeypatch.setattr(type(model.backbone), "padding_constraints", constraints)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(batch(((40, 50), (60, 33))))
    assert seen[0].shape[-2:] == (128, 128)


def test_losses_of_a_part_are_divided_by_the_boxes_of_the_whole(small_model, batch):
    model = small_model().eval()
    model.training = True
    inputs = batch()
    alone, part = model(inputs), model(inputs, num_boxes=20)
    for name, loss in alone.items():
        torch.testing.assert_close(part[name], loss * 5 / 20)


def test_pixel_mean_and_std_are_no_part_of_a_checkpoint(small_model):
    assert not [name for name in small_model().state_dict() if "pixel" in name]


def test_survives_pickling_and_state_dict(small_model, batch):
    model = small_model().eval()
    inputs = batch()
    copy = pickle.loads(pickle.dumps(model))
    other = small_model().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for twin in (copy, other):
            for a, b in zip(model(inputs), twin(inputs)):
                assert torch.equal(a["instances"].scores, b["instances"].scores)
    assert model.device == torch.device("cpu")
