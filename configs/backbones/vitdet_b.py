"""DAB-DETR on a plain ViT-B, one level of ViTDet's feature pyramid (needs timm)."""

from detectron2.config import LazyCall as L
from detectron2.modeling import SimpleFeaturePyramid, ViT

from ..dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        img_size=1024,
        patch_size=16,
        embed_dim=768,
        depth=12,
        num_heads=12,
        window_size=14,
        # all but every third block attend within windows
        window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10],
        use_rel_pos=True,
        out_feature="last_feat",
    ),
    in_feature="last_feat",
    out_channels=256,
    scale_factors=(0.5,),
    norm="LN",
)
model.in_features = ["p5"]
# weights of the backbone go here; none are assumed
train.init_checkpoint = ""
train.output_dir = "./output/backbones/vitdet_b"
