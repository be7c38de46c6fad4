"""AdamW as published: decay on all parameters, a tenth of the learning rate for the backbone."""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from dab_detr.engine.optimizer import backbone_lr_factor

optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(
        # params.model is filled in when the training starts
        base_lr="${..lr}",
        lr_factor_func=L(backbone_lr_factor)(factor=0.1),
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    fused=True,
)
