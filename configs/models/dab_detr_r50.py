"""DAB-DETR with ResNet-50; every switch of the paper's tables is a key here."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BasicStem, ResNet

from dab_detr.modeling import (
    DABDETR,
    AnchorBoxQueries,
    DABTransformer,
    Decoder,
    Encoder,
    HungarianMatcher,
    SetCriterion,
)

model = L(DABDETR)(
    # torchvision's ResNet: the stride is in the 3x3 convolution
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
        out_features=["res5"],
        # conv1 and layer1
        freeze_at=2,
    ),
    in_features=["res5"],
    num_classes=80,
    # all parts use d_model; queries and decoder use the encoder's other shared values
    transformer=L(DABTransformer)(
        d_model=256,
        key_temperature=20.0,
        encoder=L(Encoder)(
            num_layers=6,
            d_model="${..d_model}",
            num_heads=8,
            ffn_dim=2048,
            dropout=0.0,
        ),
        queries=L(AnchorBoxQueries)(
            num_queries=300,
            num_layers="${..decoder.num_layers}",
            d_model="${..d_model}",
            num_heads="${..encoder.num_heads}",
            dropout="${..encoder.dropout}",
            query_dim=4,
            num_patterns=0,
            anchor_init="normal",
            freeze_anchor_centers=False,
            modulate_hw_attention=True,
            update_anchors=True,
            temperature=10000.0,
        ),
        decoder=L(Decoder)(
            num_layers=6,
            num_classes="${...num_classes}",
            d_model="${..d_model}",
            num_heads="${..encoder.num_heads}",
            ffn_dim="${..encoder.ffn_dim}",
            dropout="${..encoder.dropout}",
            share_box_head=True,
        ),
    ),
    num_select=300,
    criterion=L(SetCriterion)(
        matcher=L(HungarianMatcher)(
            class_weight=2.0, bbox_weight=5.0, giou_weight=2.0, focal_alpha=0.25, focal_gamma=2.0
        ),
        class_weight=1.0,
        bbox_weight=5.0,
        giou_weight=2.0,
        focal_alpha=0.25,
        focal_gamma=2.0,
        class_target=None,
    ),
    # RGB, ImageNet
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
