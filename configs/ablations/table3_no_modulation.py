"""Table 3, positional attention without width and height: 45.0 AP."""

from ..dab_detr_r50_dc5_3pat_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.queries.modulate_hw_attention = False
train.output_dir = "./output/ablations/table3_no_modulation"
