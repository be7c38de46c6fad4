"""Table 3, all layers see the learned anchors: 44.0 AP."""

from ..dab_detr_r50_dc5_3pat_50ep import dataloader, lr_multiplier, model, optimizer, train

model.transformer.queries.update_anchors = False
train.output_dir = "./output/ablations/table3_no_anchor_update"
