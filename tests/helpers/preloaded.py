"""What this project's programs import, sooner or later: what the tests fork off need not."""

import matplotlib.backends.backend_agg  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import transformers.models.dab_detr.modeling_dab_detr  # noqa: F401
from PIL import Image

import benchmarking.modes  # noqa: F401
import dab_detr.engine.main  # noqa: F401

Image.init()
