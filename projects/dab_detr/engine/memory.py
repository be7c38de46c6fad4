"""Activation checkpointing: less memory for more time."""

from detectron2.layers import CNNBlockBase
from detectron2.modeling import MViT, SwinTransformer, ViT
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)

from dab_detr.modeling.decoder import DecoderLayer
from dab_detr.modeling.encoder import EncoderLayer
from dab_detr.modeling.meta_arch import DABDETR


def checkpoint_activations(
    model: DABDETR, *, backbone: bool = False, encoder: bool = False, decoder: bool = False
) -> None:
    """Store only the inputs of these parts' layers in training; results do not change.

    State dicts keep their names. A backbone is checkpointed block by block if its blocks are known
    (ResNet, RegNet and others with Detectron2's ``CNNBlockBase``, Swin, ViT, MViT), else as a
    whole, which saves less.

    Raises:
        ValueError: for a backbone with batch norms that update running statistics: they would see
            each batch twice.
    """
    if backbone:
        _refuse_running_statistics(model.backbone)
    blocks = _blocks(model.backbone) if backbone else set()
    kinds = tuple(
        kind for wanted, kind in ((encoder, EncoderLayer), (decoder, DecoderLayer)) if wanted
    )
    if not blocks and not kinds:
        return
    apply_activation_checkpointing(
        model, check_fn=lambda module: module in blocks or isinstance(module, kinds)
    )


def _blocks(backbone: nn.Module) -> set[nn.Module]:
    for module in backbone.modules():
        if isinstance(module, (ViT, MViT)):
            return set(module.blocks)
        if isinstance(module, SwinTransformer):
            # its blocks get their size through attributes, so whole stages are checkpointed
            return set(module.layers)
    blocks = {module for module in backbone.modules() if isinstance(module, CNNBlockBase)}
    return blocks or {backbone}


def _refuse_running_statistics(backbone: nn.Module) -> None:
    for name, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            raise ValueError(
                f"train.activation_checkpointing.backbone cannot be used with backbone.{name}, a "
                "batch norm with running statistics: freeze it (norm='FrozenBN'), or do not use "
                "this setting."
            )
