"""Data sets. Importing this registers ``shapes_train`` and ``shapes_val``."""

from dab_detr.data import shapes  # noqa: F401  (registers its data sets)
