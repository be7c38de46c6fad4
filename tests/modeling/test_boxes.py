import pytest
import torch
from torchvision.ops import generalized_box_iou

from dab_detr.modeling.boxes import bounded_logits, generalized_iou


def test_bounded_logits_are_the_published_inverse_sigmoid():
    logits = torch.linspace(-12, 12, 97)
    x = logits.double().sigmoid()
    expected = (x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3)).log().float()
    torch.testing.assert_close(bounded_logits(logits), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [-1000.0, 1000.0])
def test_bounded_logits_are_finite_with_finite_gradient(value):
    logits = torch.tensor([value], requires_grad=True)
    bounded = bounded_logits(logits)
    bounded.sum().backward()
    assert bounded.abs().item() == pytest.approx(6.9078, abs=1e-3)
    assert logits.grad.isfinite().all()


def random_boxes(count):
    corner = torch.rand(count, 2)
    return torch.cat((corner, corner + 0.01 + torch.rand(count, 2)), dim=1)


def test_generalized_iou_agrees_with_torchvision():
    first, second = random_boxes(30), random_boxes(20)
    ours = generalized_iou(first[:, None], second[None])
    torch.testing.assert_close(ours, generalized_box_iou(first, second))


def test_generalized_iou_of_empty_boxes_is_finite():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    value = generalized_iou(point, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    value.sum().backward()
    assert value.item() == 0
    assert point.grad.isfinite().all()
