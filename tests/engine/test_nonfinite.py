"""Losses and gradients that are not finite, and batches that are odd but fine."""

import re

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from dab_detr.engine.nonfinite import NonFiniteSteps
from dab_detr.engine.trainer import Trainer


class Sick(nn.Module):
    """A loss that is as finite as its images; beyond 5 its gradient is not."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.ones(2))

    def forward(self, batch, num_boxes):
        image = torch.stack([x["image"] for x in batch]).sum()
        return {
            "loss_class": (self.x * image).sum(),
            # 0, with an infinite slope
            "loss_giou": (self.x[0] * 0).sqrt() if image > 5 else image * 0,
        }


def sample(value, name):
    objects = Instances((4, 4), gt_boxes=Boxes(torch.zeros(1, 4)), gt_classes=torch.tensor([0]))
    return {"image": torch.tensor(value), "file_name": name, "instances": objects}


def steps(values, folder, limit=0, amp_dtype=None):
    model = Sick()
    loader = [[sample(v, f"{i}.png"), sample(0.0, "fine.png")] for i, v in enumerate(values)]
    trainer = Trainer(
        model,
        loader,
        torch.optim.SGD(model.parameters(), lr=0.1),
        device=torch.device("cpu"),
        amp_dtype=amp_dtype,
        nonfinite=NonFiniteSteps(folder, limit),
    )
    with EventStorage():
        for trainer.iter in range(len(values)):
            trainer.run_step()
    return model


BAD = {
    "nan": (float("nan"), r"no finite loss \(loss_class = nan, loss_giou = nan\)"),
    "inf": (float("-inf"), r"no finite loss \(loss_class = -inf"),
    "gradient": (6.0, "no finite gradient .its norm is (nan|inf), the losses are finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_training_stops_and_says_why(tmp_path, case):
    value, words = BAD[case]
    with pytest.raises(FloatingPointError, match=rf"Step 2 has {words}") as error:
        steps([1.0, value], tmp_path)
    assert re.search(r"on images 1.png, fine.png\..* is saved in \S+\.pth\.", str(error.value))
    saved = torch.load(tmp_path / "nonfinite_step_0000002_worker_0.pth", weights_only=True)
    assert saved["losses"].keys() == {"loss_class", "loss_giou"}
    ((first, second),) = saved["batches"]
    assert first["file_name"] == "1.png" and second["file_name"] == "fine.png"
    assert torch.equal(first["image"], torch.tensor(value)) or value != value
    assert first["boxes_xyxy"].shape == (1, 4) and first["classes"].tolist() == [0]


@pytest.mark.parametrize("case", BAD)
def test_a_number_of_steps_is_skipped_if_that_is_wanted(tmp_path, case, caplog):
    value, _ = BAD[case]
    model = steps([1.0, value, 1.0, value, 1.0], tmp_path, limit=2)
    # three steps of 0.1 with the gradient 1
    assert model.x.tolist() == pytest.approx([0.7, 0.7])
    assert "Step 4 has no finite" in caplog.text and "(2 of at most 2)" in caplog.text
    with pytest.raises(FloatingPointError, match="Step 5"):
        steps([1.0, value, 1.0, value, value], tmp_path, limit=2)


def test_the_gradient_scaler_looks_for_its_scale_by_itself(tmp_path):
    """65536 x 1e3 is beyond float16 in the weights' product, the scaler halves until it fits."""
    steps([1.0] * 4, tmp_path, amp_dtype=torch.float16)
    with pytest.raises(FloatingPointError, match="Step 1 has no finite loss"):
        steps([float("nan")], tmp_path, amp_dtype=torch.float16)
    # an infinite gradient every time lets the scale sink until nothing is left to halve
    with pytest.raises(FloatingPointError, match="no finite gradient"):
        steps([6.0] * 40, tmp_path, amp_dtype=torch.float16)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_skipped_step_leaves_the_statistics_of_norms_as_they_were(value):
    """Also those of micro-batches before the one that is to blame."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2, track_running_stats=True)

        def forward(self, batch, num_boxes):
            return {"loss": self.norm(torch.stack([x["image"] for x in batch])).pow(2).sum()}

    def rows(*values):
        return [sample(x, "x.png") | {"image": torch.tensor([x, 2 * x])} for x in values]

    good, bad = [rows(1.0, 3.0), rows(2.0, 7.0)], [rows(1.0, 5.0), rows(value, 2.0)]
    trained = []
    for loader in (good * 2, good + bad + good):
        model = Normed()
        trainer = Trainer(
            model, loader, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=2,
            device=torch.device("cpu"), nonfinite=NonFiniteSteps(limit=1),
        )  # fmt: skip
        with EventStorage():
            for trainer.iter in range(len(loader) // 2):
                trainer.run_step()
        trained.append(model.state_dict())
    assert trained[0]["norm.num_batches_tracked"] == 4
    assert all(torch.equal(trained[1][name], x) for name, x in trained[0].items())


def test_logged_means_leave_out_what_is_not_finite(tmp_path):
    """A skipped step, and the norm of a gradient that overflows float16."""

    def logged(values, **arguments):
        model = Sick()
        trainer = Trainer(
            model, [[sample(v, "x.png")] for v in values], log_period=len(values),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0), device=torch.device("cpu"),
            **arguments,
        )  # fmt: skip
        with EventStorage() as storage:
            for trainer.iter in range(len(values)):
                trainer.run_step()
            return {name: value for name, (value, _) in storage.latest().items()}

    metrics = logged([1.0, float("nan"), 2.0], nonfinite=NonFiniteSteps(limit=1))
    # loss_class is the sum of two numbers, of gradient (v, v)
    assert metrics["loss_class"] == metrics["total_loss"] == 3.0
    assert metrics["grad_norm"] == pytest.approx(1.5 * 2**0.5)
    metrics = logged([6.0, 1.0], amp_dtype=torch.float16)
    assert metrics["loss_class"] == 7.0
    assert metrics["grad_norm"] == pytest.approx(2**0.5)
    assert "total_loss" not in logged([float("nan")], nonfinite=NonFiniteSteps(limit=1))


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def many(count, size):
    corner = torch.rand(count, 2) * (size - 8)
    return torch.cat((corner, corner + 1 + torch.rand(count, 2) * 7), dim=1)


ODD = {
    "no objects at all": [boxes(), boxes()],
    "one image without": [boxes(), boxes([3, 3, 20, 20])],
    "one pixel": [boxes([5, 5, 6, 6]), boxes([63, 47, 64, 48], [0, 0, 1, 1])],
    "the whole image": [boxes([0, 0, 64, 48]), boxes([0, 0, 64, 48])],
    "the same box thrice": [boxes(*[[4, 4, 30, 30]] * 3), boxes()],
    "more objects than queries": [many(25, 48), many(11, 48)],
    "a thousand objects": [many(1000, 48), boxes([3, 3, 20, 20])],
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
def test_odd_batches_train_on(small_model, case, amp_dtype):
    batch = [
        {
            "image": torch.randint(256, (3, 48, 64), dtype=torch.uint8),
            "instances": Instances(
                (48, 64),
                gt_boxes=Boxes(x.reshape(-1, 4)),
                gt_classes=torch.randint(3, (len(x),)),
            ),
        }
        for x in ODD[case]
    ]
    model = small_model()
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer = Trainer(
        model, [batch] * 12, optimizer, device=torch.device("cpu"), amp_dtype=amp_dtype,
        max_grad_norm=0.1,
    )  # fmt: skip
    with EventStorage() as storage:
        # the gradient scaler needs some steps to find its scale
        for trainer.iter in range(12):
            storage.iter = trainer.iter
            trainer.run_step()
        assert torch.tensor(storage.latest()["total_loss"][0]).isfinite()
    parameters = list(model.parameters())
    assert all(p.isfinite().all() for p in parameters)
    assert any(not torch.equal(p, q) for p, q in zip(parameters, before))
