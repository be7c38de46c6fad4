"""Training and evaluation on top of Detectron2's engine; ``train_net.py`` is its command line."""
