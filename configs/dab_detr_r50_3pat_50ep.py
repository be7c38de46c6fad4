"""DAB-DETR R50 with 3 patterns, 50 epochs on COCO: 42.6 AP in the paper (Table 2)."""

from .dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.queries.num_patterns = 3
train.output_dir = "./output/dab_detr_r50_3pat_50ep"
