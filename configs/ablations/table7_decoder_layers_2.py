"""Table 7, 2 decoder layers on R50-DC5 with 3 patterns: 40.2 AP."""

from ..dab_detr_r50_dc5_3pat_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.decoder.num_layers = 2
train.output_dir = "./output/ablations/table7_decoder_layers_2"
