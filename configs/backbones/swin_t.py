"""DAB-DETR on Detectron2's Swin-T."""

from detectron2.config import LazyCall as L
from detectron2.modeling import SwinTransformer

from ..dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(SwinTransformer)(
    embed_dim=96,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    window_size=7,
    drop_path_rate=0.0,
    out_indices=(3,),
)
model.in_features = ["p3"]
# weights of the backbone go here; none are assumed
train.init_checkpoint = ""
train.output_dir = "./output/backbones/swin_t"
