"""A config for tests: a model that transformers has, too, as small as it gets."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet

from dab_detr import get_config

model = get_config("dab_detr_r50_50ep.py").model
model.backbone.stem.out_channels = 8
model.backbone.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=1,
        in_channels=8 * 2**index,
        out_channels=16 * 2**index,
        bottleneck_channels=4 * 2**index,
        stride_per_block=[1 if index == 0 else 2],
        norm="FrozenBN",
        stride_in_1x1=False,
    )
    for index in range(4)
]
model.transformer.d_model = 32
model.transformer.encoder.num_heads = 4
model.transformer.encoder.num_layers = 1
model.transformer.decoder.num_layers = 2
model.transformer.encoder.ffn_dim = 64
model.transformer.queries.num_queries = 20
model.num_classes = 5
model.num_select = 20
