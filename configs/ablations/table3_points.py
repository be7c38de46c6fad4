"""Table 3, 2-D points instead of boxes, no modulation: 44.0 AP."""

from ..dab_detr_r50_dc5_3pat_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.queries.query_dim = 2
model.transformer.queries.modulate_hw_attention = False
train.output_dir = "./output/ablations/table3_points"
