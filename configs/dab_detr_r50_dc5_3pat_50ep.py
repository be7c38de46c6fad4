"""DAB-DETR R50-DC5 with 3 patterns, 50 epochs on COCO: 45.7 AP in the paper (Table 2)."""

from .dab_detr_r50_dc5_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.queries.num_patterns = 3
# unlike the model without patterns
model.transformer.key_temperature = 20.0
train.output_dir = "./output/dab_detr_r50_dc5_3pat_50ep"
