"""Activation checkpointing: the same gradients under the same names, with less kept."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from torch.autograd.graph import saved_tensors_hooks

from dab_detr.config import get_config
from dab_detr.engine.memory import checkpoint_activations


def backbone():
    stages = [
        ResNet.make_stage(
            BasicBlock, 2, in_channels=16, out_channels=24, stride_per_block=[2, 1], norm="FrozenBN"
        )
    ]
    return ResNet(BasicStem(3, 16, norm="FrozenBN"), stages, out_features=["res2"])


def kept_and_gradients(model, batch):
    """Bytes that the forward pass keeps for the backward pass, and the gradients by name."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    torch.manual_seed(1)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        total = sum(model(batch).values())
    total.backward()
    state = model.state_dict(keep_vars=True)
    return sum(kept), {k: v.grad for k, v in state.items() if v.grad is not None}


@pytest.mark.parametrize("part", ["backbone", "encoder", "decoder"])
def test_gradients_are_the_same_and_less_is_kept(small_model, batch, part):
    inputs = batch(sizes=((64, 64), (64, 64)))
    model = small_model(backbone=backbone(), dropout=0.1)
    kept, expected = kept_and_gradients(model, inputs)
    names = list(model.state_dict())
    model.zero_grad()
    checkpoint_activations(model, **{part: True})
    assert list(model.state_dict()) == names
    kept_now, gradients = kept_and_gradients(model, inputs)
    assert gradients.keys() == expected.keys() and len(gradients) > 50
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    assert kept_now < 0.95 * kept
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", ["backbones/swin_t.py", "backbones/mvitv2_t.py"])
def test_blocks_of_other_backbones_are_known(name, batch):
    torch.manual_seed(0)
    model = instantiate(get_config(name).model).train()
    names = list(model.state_dict())
    checkpoint_activations(model, backbone=True)
    assert list(model.state_dict()) == names
    wrapped = [m for m in model.backbone.modules() if hasattr(m, "_checkpoint_wrapped_module")]
    assert len(wrapped) >= 4
    sum(model(batch(sizes=((64, 64),), counts=(2,))).values()).backward()


def test_norms_that_learn_statistics_are_refused(small_model):
    with pytest.raises(
        ValueError, match=r"backbone.stem.conv1.norm, a batch norm with running statistics"
    ):
        checkpoint_activations(small_model(), backbone=True)
    assert any(isinstance(m, FrozenBatchNorm2d) for m in backbone().modules())
