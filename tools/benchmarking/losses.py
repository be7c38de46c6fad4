"""Candidates for matching and losses: all layers at once, and layer by layer."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarking import layer_by_layer
from benchmarking.interleaved import Work
from dab_detr.modeling import HungarianMatcher, Outputs, SetCriterion, Targets


class LossSetting(NamedTuple):
    """Sizes of random predictions and objects."""

    layers: int
    batch: int
    queries: int
    classes: int
    objects: int
    device: str


def _random_case(setting: LossSetting) -> tuple[Tensor, Tensor, Targets]:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(setting.device)

    outputs = (setting.layers, setting.batch, setting.queries)
    total = setting.batch * setting.objects
    targets = Targets(
        labels=torch.randint(setting.classes, (total,), generator=generator).to(setting.device),
        boxes_cxcywh=normal(total, 4).sigmoid() * 0.5 + 0.1,
        counts=[setting.objects] * setting.batch,
    )
    # like the start of training, where every class has probability 0.01
    return normal(*outputs, setting.classes) - 4.6, normal(*outputs, 4), targets


def match(setting: LossSetting, *, at_once: bool) -> Work:
    """The matching of all layers and images."""
    class_logits, box_logits, targets = _random_case(setting)
    boxes = box_logits.sigmoid()

    def at_once_for_all() -> Tensor:
        return torch.stack(HungarianMatcher()(class_logits, boxes, targets), dim=1)

    def by_layer() -> list[list[tuple]]:
        return [
            layer_by_layer.match_layer(of_layer, layer_boxes, targets)
            for of_layer, layer_boxes in zip(class_logits, boxes)
        ]

    def outcome() -> dict[str, Tensor]:
        """Layer, image, query and object of each pair, sorted."""
        pairs = at_once_for_all().cpu() if at_once else _as_pairs(by_layer(), setting.objects)
        return {"pairs": torch.unique(pairs, dim=0).double()}

    return Work(at_once_for_all if at_once else by_layer, outcome)


def _as_pairs(by_layer: list[list[tuple]], objects_per_image: int) -> Tensor:
    found = []
    for layer, matches in enumerate(by_layer):
        for image, (query, objects) in enumerate(matches):
            place = torch.tensor([layer, image]).expand(len(query), 2)
            column = torch.stack((query, objects + image * objects_per_image), dim=1)
            found.append(torch.cat((place, column), dim=1))
    return torch.cat(found)


def compute_losses(setting: LossSetting, *, at_once: bool) -> Work:
    """Matching, losses and their gradients."""
    class_logits, box_logits, targets = _random_case(setting)
    class_logits.requires_grad_()
    box_logits.requires_grad_()
    criterion = SetCriterion(HungarianMatcher()) if at_once else layer_by_layer.criterion

    def losses() -> dict[str, Tensor]:
        class_logits.grad = box_logits.grad = None
        losses = criterion(Outputs(class_logits, box_logits), targets)
        sum(losses.values()).backward()
        return losses

    def outcome() -> dict[str, Tensor]:
        values = {name: loss.detach() for name, loss in losses().items()}
        gradients = {"class gradient": class_logits.grad, "box gradient": box_logits.grad}
        return {**dict(sorted(values.items())), **gradients}

    return Work(losses, outcome)
