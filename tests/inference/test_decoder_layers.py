"""What each decoder layer says of a detection, against models that end with that layer."""

import copy

import pytest
import torch
from chosen_queries import ChosenQueries
from detections import as_after_training, assert_same_but_for_rounding
from detectron2.structures import Boxes, Instances

from dab_detr import Predictor

SIZE = {"short_edge": 64, "max_size": 100}


def picture(height=60, width=90):
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


def with_layers(model, image, **settings):
    predictor = Predictor(model, **{**SIZE, **settings})
    assert predictor.num_layers == len(model.transformer.decoder.layers)
    everything = predictor.selection(score_threshold=0)
    return predictor.detect_layers(predictor.prepare(image), everything)


def of_layer(found, layer):
    """The detections as those of a model whose last layer is ``layer``, from 1."""
    count = found.layer_scores.shape[1]
    return Instances(
        found.image_size,
        pred_boxes=Boxes(found.layer_boxes[:, layer - count - 1]),
        scores=found.layer_scores[:, layer - count - 1],
        pred_classes=found.pred_classes,
    )


@pytest.mark.parametrize("share_box_head", [True, False])
def test_each_layer_says_what_a_model_that_ends_there_does(small_model, share_box_head):
    model = as_after_training(
        small_model(num_queries=20, num_decoder_layers=3, share_box_head=share_box_head)
    )
    for box_head in model.transformer.decoder.box_heads:
        torch.nn.init.normal_(box_head.layers[-1].weight, std=0.3)
    image = picture()
    found = with_layers(model, image)
    assert len(found) == 60  # every pair of a query and a class
    for layer in (1, 2, 3):
        shorter = copy.deepcopy(model)
        del shorter.transformer.decoder.layers[layer:]
        expected = Predictor(shorter, **SIZE)(image, score_threshold=0)
        assert_same_but_for_rounding(of_layer(found, layer), expected)
    assert not torch.allclose(found.layer_boxes[:, 1], found.layer_boxes[:, 3], atol=1)


@pytest.mark.parametrize("optimize", [True, False])
def test_the_last_layer_is_the_prediction(detector, optimize):
    predictor = Predictor(detector, optimize=optimize, **SIZE)
    image = picture()
    found = with_layers(detector, image, optimize=optimize)
    expected = predictor(image, score_threshold=0)
    assert len(found) == len(expected) > 20
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.layer_boxes[:, -1], expected.pred_boxes.tensor)
    assert torch.equal(found.layer_scores[:, -1], expected.scores)
    assert found.class_names == expected.class_names
    # the fields go with the selection
    best = found[found.scores > found.scores[5]]
    assert best.layer_boxes.shape == (5, 3, 4) and best.layer_scores.shape == (5, 2)


@pytest.mark.parametrize(
    "settings", [{}, {"num_patterns": 2}, {"query_dim": 2, "modulate_hw_attention": False}], ids=str
)
def test_the_first_boxes_are_the_learned_anchors(small_model, settings):
    model = as_after_training(small_model(num_queries=20, **settings))
    found = with_layers(model, picture(60, 90))
    anchors = torch.zeros(20, 4)
    anchors[:, :2] = model.transformer.queries.center_logits.detach().sigmoid()
    if settings.get("query_dim") != 2:
        anchors[:, 2:] = model.transformer.queries.size_logits.detach().sigmoid()
    corners = torch.cat(
        (anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2), dim=1
    )
    corners = corners.clamp(0, 1) * torch.tensor([90, 60, 90, 60])
    starts = found.layer_boxes[:, 0]
    distance = (starts[:, None] - corners[None]).abs().amax(-1)
    assert distance.amin(1).max() < 1e-3  # each is an anchor
    assert distance.amin(0).max() < 1e-3  # and each anchor is there


def test_queries_without_anchors_have_only_the_layers(small_model):
    model = small_model(num_decoder_layers=2)
    queries = ChosenQueries(num_queries=7, d_model=32, num_classes=3)
    model.transformer.queries = queries
    model.transformer.decoder.connect(queries)
    found = with_layers(as_after_training(model), picture())
    assert found.layer_boxes.shape == (21, 2, 4)
    assert torch.equal(found.layer_boxes[:, -1], found.pred_boxes.tensor)


def test_the_mode_of_a_model_in_memory_does_not_change(detector):
    detector.train()
    with_layers(detector, picture())
    assert detector.training
