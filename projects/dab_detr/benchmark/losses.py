"""Matching and losses as contestants: all layers at once, and layer by layer."""

from typing import NamedTuple

import torch
from torch import Tensor

from dab_detr.benchmark import layer_by_layer
from dab_detr.benchmark.turns import Work
from dab_detr.modeling.criterion import SetCriterion
from dab_detr.modeling.matcher import HungarianMatcher, Targets


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
    # around the start of a training, where every class has probability 0.01
    return normal(*outputs, setting.classes) - 4.6, normal(*outputs, 4), targets


def match(setting: LossSetting, *, at_once: bool) -> Work:
    """The assignments of all layers and images."""
    class_logits, box_logits, targets = _random_case(setting)
    boxes = box_logits.sigmoid()

    def pairs() -> Tensor:
        """Layer, image, query and object of each pair, sorted."""
        if at_once:
            return torch.stack(HungarianMatcher()(class_logits, boxes, targets), dim=1)
        found = []
        for layer in range(setting.layers):
            matches = layer_by_layer.match_layer(class_logits[layer], boxes[layer], targets)
            for image, (query, objects) in enumerate(matches):
                place = torch.tensor([layer, image]).expand(len(query), 2)
                column = torch.stack((query, objects + image * setting.objects), dim=1)
                found.append(torch.cat((place, column), dim=1))
        return torch.cat(found)

    def outcome() -> dict[str, Tensor]:
        return {"pairs": torch.unique(pairs().cpu(), dim=0).double()}

    return Work(pairs, outcome)


def compute_losses(setting: LossSetting, *, at_once: bool) -> Work:
    """Matching, losses and their gradient."""
    class_logits, box_logits, targets = _random_case(setting)
    class_logits.requires_grad_()
    box_logits.requires_grad_()
    criterion = SetCriterion(HungarianMatcher()) if at_once else layer_by_layer.criterion

    def losses() -> dict[str, Tensor]:
        class_logits.grad = box_logits.grad = None
        losses = criterion(class_logits, box_logits, targets)
        sum(losses.values()).backward()
        return losses

    def outcome() -> dict[str, Tensor]:
        values = {name: loss.detach() for name, loss in losses().items()}
        gradients = {"class gradient": class_logits.grad, "box gradient": box_logits.grad}
        return {**dict(sorted(values.items())), **gradients}

    return Work(losses, outcome)
