"""The command ``dab-detr``: Detectron2 and PyTorch are imported only when a command needs them."""
