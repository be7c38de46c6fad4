"""Table 3, the transformer's usual temperature of 10000: 44.4 AP."""

from ..dab_detr_r50_dc5_3pat_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.key_temperature = 10000.0
train.output_dir = "./output/ablations/table3_no_temperature_tuning"
