"""DAB-DETR on Detectron2's RegNetX-4GF."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem

from ..dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(RegNet)(
    stem_class=SimpleStem,
    stem_width=32,
    block_class=ResBottleneckBlock,
    depth=23,
    w_a=38.65,
    w_0=96,
    w_m=2.43,
    group_width=40,
    norm="FrozenBN",
    freeze_at=2,
    out_features=["s4"],
)
model.in_features = ["s4"]
# weights of the backbone go here; none are assumed
train.init_checkpoint = ""
train.output_dir = "./output/backbones/regnetx_4gf"
