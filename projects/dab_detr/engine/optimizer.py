"""Learning rates by parameter, for Detectron2's ``get_default_optimizer_params``.

A module of its own, because YAML configs may call everything that it defines, see
:mod:`dab_detr.yaml_config`.
"""

from collections.abc import Callable


def backbone_lr_factor(factor: float = 0.1) -> Callable[[str], float]:
    """A function from a parameter's name to a factor of the base learning rate.

    Args:
        factor: for the backbone's parameters, 0.1 in the paper. All others get 1.
    """
    return lambda name: factor if name.startswith("backbone.") else 1.0
