"""The matcher and the criterion against versions that are slow and obvious."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dab_detr.modeling import HungarianMatcher, Outputs, SetCriterion, Targets

LAYERS, CLASSES = 3, 4


def random_case(counts, queries):
    class_logits = torch.randn(LAYERS, len(counts), queries, CLASSES, requires_grad=True)
    box_logits = torch.randn(LAYERS, len(counts), queries, 4, requires_grad=True)
    total = sum(counts)
    targets = Targets(
        labels=torch.randint(CLASSES, (total,)),
        boxes_cxcywh=torch.rand(total, 4) * 0.5 + 0.2,
        counts=counts,
    )
    return class_logits, box_logits, targets


def corners(box):
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def slow_giou(first, second):
    ax0, ay0, ax1, ay1 = corners(first)
    bx0, by0, bx1, by1 = corners(second)
    inter = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inter / union - (hull - union) / hull


def slow_cost(logits, box, label, target_box):
    p = 1 / (1 + math.exp(-logits[label]))
    focal = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    distance = sum(abs(a - b) for a, b in zip(box, target_box))
    return 2 * focal + 5 * distance - 2 * slow_giou(box, target_box)


def by_image(class_logits, box_logits, targets):
    """(layer, image, logits (Q, K), boxes (Q, 4), labels, target boxes, first target) as lists."""
    starts = [sum(targets.counts[:i]) for i in range(len(targets.counts))]
    for layer in range(LAYERS):
        for image, (start, count) in enumerate(zip(starts, targets.counts)):
            yield (
                layer,
                image,
                class_logits[layer, image].tolist(),
                box_logits[layer, image].sigmoid().tolist(),
                targets.labels[start : start + count].tolist(),
                targets.boxes_cxcywh[start : start + count].tolist(),
                start,
            )


def best_assignment(costs, queries):
    """All ways to give the objects different queries, the cheapest: {object: query}."""
    count = len(costs)
    if count <= queries:
        ways = (
            [(t, q) for t, q in enumerate(chosen)]
            for chosen in itertools.permutations(range(queries), count)
        )
    else:
        ways = (
            [(t, q) for q, t in enumerate(chosen)]
            for chosen in itertools.permutations(range(count), queries)
        )
    return dict(min(ways, key=lambda pairs: sum(costs[t][q] for t, q in pairs)))


def slow_matches(class_logits, box_logits, targets):
    found = set()
    for layer, image, logits, boxes, labels, wanted, start in by_image(
        class_logits, box_logits, targets
    ):
        costs = [
            [slow_cost(logits[q], boxes[q], label, box) for q in range(len(logits))]
            for label, box in zip(labels, wanted)
        ]
        for target, query in best_assignment(costs, len(logits)).items():
            found.add((layer, image, query, start + target))
    return found


CASES = [((3, 2), 5), ((1, 0, 4), 6), ((0, 0), 4), ((5, 2), 3), ((0, 6), 2)]


@pytest.mark.parametrize("counts, queries", CASES)
def test_matcher_finds_the_cheapest_assignment(counts, queries):
    class_logits, box_logits, targets = random_case(counts, queries)
    matches = HungarianMatcher()(class_logits, box_logits.sigmoid(), targets)
    assert set(zip(*(x.tolist() for x in matches))) == slow_matches(
        class_logits, box_logits, targets
    )


def slow_losses(class_logits, box_logits, targets):
    matched = slow_matches(class_logits, box_logits, targets)
    num_boxes = max(1, sum(targets.counts))
    losses = {}
    for layer, image, logits, boxes, _, _, _ in by_image(class_logits, box_logits, targets):
        suffix = "" if layer == LAYERS - 1 else f"_{layer}"
        query_label = {
            q: (targets.labels[t].item(), targets.boxes_cxcywh[t].tolist())
            for of_layer, of_image, q, t in matched
            if (of_layer, of_image) == (layer, image)
        }
        for q, scores in enumerate(logits):
            label, wanted = query_label.get(q, (None, None))
            for c, logit in enumerate(scores):
                p = 1 / (1 + math.exp(-logit))
                term = (
                    0.25 * (1 - p) ** 2 * -math.log(p)
                    if c == label
                    else 0.75 * p**2 * -math.log(1 - p)
                )
                name = f"loss_class{suffix}"
                losses[name] = losses.get(name, 0) + term / num_boxes
            distance = sum(abs(a - b) for a, b in zip(boxes[q], wanted)) if wanted else 0
            overlap = 1 - slow_giou(boxes[q], wanted) if wanted else 0
            for name, term in (("loss_bbox", 5 * distance), ("loss_giou", 2 * overlap)):
                losses[name + suffix] = losses.get(name + suffix, 0) + term / num_boxes
    return losses


@pytest.mark.parametrize("counts, queries", CASES)
def test_losses_are_the_sums_over_matches(counts, queries):
    class_logits, box_logits, targets = random_case(counts, queries)
    losses = SetCriterion(HungarianMatcher())(Outputs(class_logits, box_logits), targets)
    expected = slow_losses(class_logits, box_logits, targets)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    sum(losses.values()).backward()
    assert class_logits.grad.isfinite().all()
    assert box_logits.grad.isfinite().all()


def test_weights_scale_their_term():
    case = random_case((2, 1), 5)
    plain = SetCriterion(HungarianMatcher())(Outputs(*case[:2]), case[2])
    weighted = SetCriterion(
        HungarianMatcher(), class_weight=2.0, bbox_weight=15.0, giou_weight=1.0
    )(Outputs(*case[:2]), case[2])
    for name, factor in (("loss_class_0", 2), ("loss_bbox_1", 3), ("loss_giou", 0.5)):
        torch.testing.assert_close(weighted[name], plain[name] * factor)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_have_losses_that_are_not(value):
    class_logits, box_logits, targets = random_case((2, 1), 5)
    broken = box_logits.detach().clone()
    # all queries of an image, in one layer only
    broken[0, 1] = math.nan
    losses = SetCriterion(HungarianMatcher())(Outputs(class_logits, broken), targets)
    assert not losses["loss_bbox_0"].isfinite() and losses["loss_bbox_1"].isfinite()
    broken = class_logits.detach().clone()
    broken[1, 0, 2, 0] = value
    losses = SetCriterion(HungarianMatcher())(Outputs(broken, box_logits), targets)
    assert losses["loss_class_0"].isfinite() and not losses["loss_class_1"].isfinite()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_matched_last(value):
    class_logits, boxes = torch.zeros(1, 1, 4, 3), torch.full((1, 1, 4, 4), 0.5)
    class_logits[0, 0, 1] = value
    boxes[0, 0, 1] = value
    # far from the object, but numbers
    boxes[0, 0, 2:, :2] = 0.05
    targets = Targets(torch.tensor([0, 1, 2]), torch.full((3, 4), 0.5), [3])
    matches = HungarianMatcher()(class_logits, boxes, targets)
    assert sorted(matches.query.tolist()) == [0, 2, 3]


def test_losses_are_divided_by_a_given_number_of_boxes():
    case = random_case((2, 1), 5)
    criterion = SetCriterion(HungarianMatcher())
    alone, larger, least = (
        criterion(Outputs(*case[:2]), case[2], num_boxes=n) for n in (None, 12, 0)
    )
    for name, loss in alone.items():
        torch.testing.assert_close(larger[name], loss * 3 / 12)
        torch.testing.assert_close(least[name], loss * 3)


def test_losses_under_half_precision_are_float32():
    class_logits, box_logits, targets = random_case((2, 1), 5)
    exact = SetCriterion(HungarianMatcher())(Outputs(class_logits, box_logits), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = SetCriterion(HungarianMatcher())(
            Outputs(class_logits.bfloat16(), box_logits), targets
        )
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=5e-2, atol=1e-2)


class OperationNames(TorchDispatchMode):
    """Notes the names of all operations, those of the backward pass included.

    An index that is a mask is noted as such: its result has a size that the host has to know.
    """

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and isinstance(args[1], list) else []
        is_mask = any(x is not None and x.dtype is torch.bool for x in indices)
        self.names.add("masked_select" if is_mask else name)
        return operation(*args, **(kwargs or {}))


def test_the_host_waits_for_the_device_once(monkeypatch):
    """These operations would make it wait for a GPU; the copy of the costs is the one wait."""
    copies = []
    to_host = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: (copies.append(x), to_host(x))[1])
    # the host's own lists and arrays come from these
    for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, lambda x, name=name: pytest.fail(name))
    class_logits, box_logits, targets = random_case((3, 0, 2), 6)
    with OperationNames() as operations:
        losses = SetCriterion(HungarianMatcher())(Outputs(class_logits, box_logits), targets, 5.0)
        sum(losses.values()).backward()
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal"}
    assert "index_put_" in operations.names
    assert not operations.names & waiting
    assert len(copies) == 1


def test_a_focal_alpha_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="focal_alpha is -1"):
        SetCriterion(HungarianMatcher(), focal_alpha=-1)
