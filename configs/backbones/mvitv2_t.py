"""DAB-DETR on Detectron2's MViTv2-T (needs timm)."""

from detectron2.config import LazyCall as L
from detectron2.modeling import MViT

from ..dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(MViT)(
    embed_dim=96,
    depth=10,
    num_heads=1,
    last_block_indexes=(0, 2, 7, 9),
    residual_pooling=True,
    drop_path_rate=0.0,
    out_features=("scale5",),
)
model.in_features = ["scale5"]
# weights of the backbone go here; none are assumed
train.init_checkpoint = ""
train.output_dir = "./output/backbones/mvitv2_t"
