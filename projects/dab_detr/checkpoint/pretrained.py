"""Tensor names of backbones that were pre-trained for classification."""

from dab_detr.checkpoint.layout import Layout, torchvision_resnet

_PRE_TRAINING = (
    (r"num_batches_tracked$", "frozen batch norms do not count batches"),
    (r"^(stem\.)?(fc|fc1000|linear)\.", "the classifier of the pre-training"),
)

TORCHVISION = Layout(
    name="torchvision",
    mark=r"layer1\.0\.conv1\.weight",
    rows=torchvision_resnet(""),
    backbone_alone=True,
    unused=_PRE_TRAINING,
)

DETECTRON2 = Layout(
    name="detectron2",
    mark=r"stem\.conv1\.weight",
    rows=(("{rest}", "backbone.{rest}"),),
    backbone_alone=True,
    unused=_PRE_TRAINING,
)
