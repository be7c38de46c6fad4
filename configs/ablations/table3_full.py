"""Table 3, the whole method on R50-DC5 with 3 patterns: 45.7 AP."""

from ..dab_detr_r50_dc5_3pat_50ep import dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "./output/ablations/table3_full"
