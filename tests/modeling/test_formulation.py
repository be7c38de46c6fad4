"""A query formulation is one class, in ``chosen_queries.py``, and one config."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from chosen_queries import ChosenQueries
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from dab_detr import inference_copy
from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.conversion import from_dab_detr
from dab_detr.engine.memory import checkpoint_activations
from dab_detr.errors import InputError
from dab_detr.flat_config import model_config
from dab_detr.modeling import (
    DABDETR,
    HungarianMatcher,
    Matches,
    Outputs,
    SetCriterion,
    Targets,
)


@pytest.fixture
def chosen_model(small_model):
    """The config's one change: another class under ``transformer.queries``."""

    def build(**settings):
        model = small_model()
        cfg = model_config(
            num_classes=3, d_model=32, num_heads=4, num_encoder_layers=1, num_decoder_layers=3,
            ffn_dim=64, **settings,
        )  # fmt: skip
        cfg.transformer.queries = L(ChosenQueries)(
            num_queries=6, d_model="${..d_model}", num_classes="${...num_classes}"
        )
        return DABDETR(
            backbone=model.backbone,
            in_features=["res2"],
            num_classes=3,
            transformer=instantiate(cfg.transformer),
            num_select=6,
        )

    return build


def test_it_trains_with_losses_under_its_own_names(chosen_model, batch):
    model = chosen_model(dropout=0.1)
    losses = model(batch())
    terms = ("loss_class", "loss_bbox", "loss_giou")
    layers = ["", "_0", "_1"]
    names = {f"{t}{x}" for t in terms for x in layers} | {f"{t}_encoder" for t in terms}
    names |= {f"{t}{x}_objects" for t in terms for x in layers}
    assert losses.keys() == names
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    # an image without objects, and a batch without any
    for counts in ((3, 0), (0, 0)):
        assert sum(model(batch(counts=counts)).values()).isfinite()


@torch.no_grad()
def test_each_image_has_its_own_queries_and_padding_takes_no_part(chosen_model):
    transformer = chosen_model().transformer.eval()
    features = torch.randn(2, 32, 6, 9)
    mask = torch.ones(2, 6, 9, dtype=torch.bool)
    sizes = [(6, 9), (4, 5)]
    for image, (height, width) in enumerate(sizes):
        mask[image, :height, :width] = False
    together = transformer(features, mask)
    assert not torch.allclose(*together.box_logits[-1], atol=1e-2)
    for image, (height, width) in enumerate(sizes):
        alone = transformer(features[image : image + 1, :, :height, :width])
        for batched, single in zip(together[:2], alone):
            torch.testing.assert_close(batched[:, image], single[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_mask_keeps_what_is_known_from_the_other_queries(chosen_model, batch):
    """What the groups predict does not depend on the objects' own queries."""
    model = chosen_model()
    model.backbone.eval()
    seen = []
    model.criterion.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    inputs = batch()
    model(inputs)
    torch.nn.init.normal_(model.transformer.queries.label.weight)
    model(inputs)
    first, second = seen
    torch.testing.assert_close(first.class_logits, second.class_logits)
    extra = [x.extra["objects"].class_logits for x in seen]
    assert not torch.allclose(*extra, atol=1e-2)


def test_the_rest_of_the_project_works_with_it(chosen_model, batch, tmp_path):
    model = chosen_model()
    saver = Checkpointer(model, str(tmp_path), complete=True)
    saver.save("model_final")
    assert saver.description()["settings"]["queries"] == "ChosenQueries"
    other = chosen_model()
    Checkpointer(other, complete=True).load(str(tmp_path / "model_final.pth"))
    fast = inference_copy(pickle.loads(pickle.dumps(other)))
    inputs = batch()
    with torch.no_grad():
        for found, expected in zip(fast(inputs), model.eval()(inputs)):
            torch.testing.assert_close(
                found["instances"].scores, expected["instances"].scores, atol=1e-5, rtol=0
            )
    model.train()
    torch.manual_seed(1)
    expected = model(inputs)
    checkpoint_activations(model, encoder=True, decoder=True)
    for name, loss in model(inputs).items():
        torch.testing.assert_close(loss, expected[name])


def test_other_layouts_have_no_place_for_it(chosen_model, tmp_path, load_tool, capsys):
    model = chosen_model()
    for layout in ("official", "hf"):
        with pytest.raises(
            InputError, match=rf"{layout} only supports anchor boxes.*transformer\.queries\."
        ):
            from_dab_detr(model.state_dict(), layout)
    Checkpointer(model, str(tmp_path), complete=True).save("model_final")
    convert = load_tool("convert_checkpoint").main
    target = tmp_path / "hf"
    source = str(tmp_path / "model_final.pth")
    for layout in ("official", "hf"):
        assert convert([source, str(target) + ".pth" * (layout != "hf"), "--to", layout]) == 1
        assert "queries=AnchorBoxQueries, not ChosenQueries" in capsys.readouterr().err


def random_outputs(queries, num_groups=1):
    logits, boxes = torch.randn(2, 2, queries, 3), torch.randn(2, 2, queries, 4)
    return Outputs(logits, boxes, num_groups=num_groups)


def random_targets():
    return Targets(torch.randint(3, (3,)), torch.rand(3, 4) * 0.4 + 0.2, [1, 2])


def pairs(matches):
    return set(zip(*(x.tolist() for x in matches)))


def test_groups_are_matched_each_by_itself():
    criterion, targets = SetCriterion(HungarianMatcher()), random_targets()
    outputs = random_outputs(8, num_groups=2)
    found = pairs(criterion.match(outputs, targets))
    expected = set()
    for group in (0, 1):
        own = slice(4 * group, 4 * group + 4)
        alone = Outputs(outputs.class_logits[:, :, own], outputs.box_logits[:, :, own])
        for layer, image, query, target in pairs(criterion.match(alone, targets)):
            expected.add((layer, image, query + 4 * group, target))
    assert found == expected and len(found) == 2 * 2 * 3
    # two groups that are alike lose what one of them does
    twice = Outputs(*(x[:, :, :4].repeat(1, 1, 2, 1) for x in outputs[:2]), num_groups=2)
    once = Outputs(*(x[:, :, :4] for x in outputs[:2]))
    for name, loss in criterion(twice, targets).items():
        torch.testing.assert_close(loss, criterion(once, targets)[name])


def test_a_layer_may_be_matched_several_times():
    """The losses of two sets of pairs are those of each, but for what belongs to no object."""
    criterion, targets = SetCriterion(HungarianMatcher()), random_targets()
    outputs = random_outputs(6)
    first = criterion.match(outputs, targets)
    second = first._replace(query=(first.query + 1) % 6)
    both = Matches(*(torch.cat(x) for x in zip(first, second)))
    by = [criterion.losses(outputs, x, targets, 3) for x in (first, second, both)]
    for name in ("loss_bbox", "loss_giou_0"):
        torch.testing.assert_close(by[2][name], by[0][name] + by[1][name])
    known = criterion(outputs._replace(matches=second), targets, 3)
    assert all(torch.equal(known[name], by[1][name]) for name in known)


def test_the_class_target_can_be_exchanged():
    targets, outputs = random_targets(), random_outputs(5)
    plain = SetCriterion(HungarianMatcher())
    ones = SetCriterion(HungarianMatcher(), class_target=lambda x, y: torch.ones(len(x)))
    for name, loss in plain(outputs, targets).items():
        torch.testing.assert_close(ones(outputs, targets)[name], loss)
    half = SetCriterion(HungarianMatcher(), class_target=lambda x, y: torch.full((len(x),), 0.3))
    matches = half.match(outputs, targets)
    found = half.losses(outputs, matches, targets, 1)["loss_class"]
    prob = outputs.class_logits[1].sigmoid().double()
    expected = (0.75 * prob**2 * -(1 - prob).log()).sum()
    for layer, image, query, target in pairs(matches):
        if layer == 1:
            p = prob[image, query, targets.labels[target]]
            expected -= 0.75 * p**2 * -(1 - p).log()
            expected += 0.25 * (p - 0.3) ** 2 * -(0.3 * p.log() + 0.7 * (1 - p).log())
    torch.testing.assert_close(found.double(), expected)


def test_an_iou_as_class_target_sees_matched_boxes():
    seen = []

    def iou(predicted, wanted):
        assert not predicted.requires_grad
        seen.append((predicted, wanted))
        return torch.ones(len(predicted))

    targets, outputs = random_targets(), random_outputs(5)
    criterion = SetCriterion(HungarianMatcher(), class_target=iou)
    matches = criterion.match(outputs, targets)
    criterion.losses(outputs, matches, targets, 1)
    ((predicted, wanted),) = seen
    boxes = outputs.box_logits.sigmoid()[matches.layer, matches.image, matches.query]
    assert torch.equal(predicted, boxes)
    assert torch.equal(wanted, targets.boxes_cxcywh[matches.target])


CONFIG = Path(__file__).parents[1] / "assets" / "chosen_config.py"


def test_two_files_are_all_that_it_takes(in_process, tmp_path):
    """To train, resume and evaluate it: this config, and the module that the config names."""
    arguments = ["--config-file", str(CONFIG), f"train.output_dir={tmp_path}"]
    arguments.append("model.transformer.queries.num_groups=3")
    assert in_process(*arguments, "train.max_iter=1") == 0
    assert in_process(*arguments, "--resume") == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert {"loss_class_encoder", "loss_giou_0_objects"} <= rows[0].keys()
    results = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    weights = f"train.init_checkpoint={tmp_path / 'model_final.pth'}"
    assert in_process(*arguments, "--eval-only", weights) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["results"] == results
