"""R101 with 3 patterns, centres random and fixed: 44.8 AP in the paper (Table 8)."""

from .dab_detr_r101_3pat_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.queries.anchor_init = "uniform"
model.transformer.queries.freeze_anchor_centers = True
train.output_dir = "./output/dab_detr_r101_3pat_fixedxy_50ep"
