"""Table 6, temperature 20, R50, batch 64, no modulation: 40.1 AP."""

from ..dab_detr_r50_50ep import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 64
model.transformer.queries.modulate_hw_attention = False
model.transformer.key_temperature = 20.0
train.output_dir = "./output/ablations/table6_temperature_20"
