"""A small DAB-DETR on a ResNet of four stages, which every layout has names for."""

from detectron2.config import instantiate
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet

from dab_detr.flat_config import model_config
from dab_detr.modeling import DABDETR

WIDTHS, CLASSES, QUERIES = [16, 32, 48, 64], 7, 12


def own_model(num_patterns=0, num_decoder_layers=3):
    stages, in_channels = [], 16
    for stage, (width, depth) in enumerate(zip(WIDTHS, [1, 2, 1, 1])):
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                depth,
                in_channels=in_channels,
                out_channels=width,
                bottleneck_channels=width // 4,
                stride_per_block=[1 if stage == 0 else 2] + [1] * (depth - 1),
                norm="FrozenBN",
                stride_in_1x1=False,
            )
        )
        in_channels = width
    cfg = model_config(
        num_classes=CLASSES,
        d_model=32,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=num_decoder_layers,
        ffn_dim=64,
        num_queries=QUERIES,
        num_patterns=num_patterns,
    )
    return DABDETR(
        backbone=ResNet(BasicStem(3, 16, norm="FrozenBN"), stages, out_features=["res5"]),
        in_features=["res5"],
        num_classes=CLASSES,
        transformer=instantiate(cfg.transformer),
    ).eval()
