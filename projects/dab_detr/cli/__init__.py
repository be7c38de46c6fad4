"""The command ``dab-detr``. Detectron2 and PyTorch are imported only by commands that need them."""
