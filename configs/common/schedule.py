"""Learning rate schedules. Milestones are relative to the length: 40 of 50 is at 80 %."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

# One tenth of the rate after epoch 40 of 50, no warm-up.
lr_multiplier_50ep = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[40, 50])
