"""Tensor names of detrex."""

from dab_detr.checkpoint.layout import (
    DECODER,
    ENCODER,
    QUERY_ENCODING,
    Layout,
    prefixed,
    torchvision_resnet,
)
from dab_detr.checkpoint.official import BOX_HEADS, HEAD_COPIES, HEADS_AND_SHARED

DETREX = Layout(
    name="detrex",
    mark=r"transformer\.decoder\.layers\.0\.attentions\.0\.query_content_proj\.weight",
    rows=(
        *HEADS_AND_SHARED,
        *BOX_HEADS,
        ("transformer.decoder.post_norm_layer.{rest}", "transformer.decoder.norm.{rest}"),
        *prefixed(
            ENCODER,
            ENCODER,
            {
                "attentions.0.attn.out_proj.{rest}": "self_attention.out_proj.{rest}",
                "norms.0.{rest}": "self_attention_norm.{rest}",
                "norms.1.{rest}": "feed_forward_norm.{rest}",
                "ffns.0.layers.0.0.{rest}": "feed_forward.linear1.{rest}",
                "ffns.0.layers.0.1.{rest}": "feed_forward.activation.{rest}",
                "ffns.0.layers.1.{rest}": "feed_forward.linear2.{rest}",
            },
        ),
        *prefixed(
            DECODER,
            DECODER,
            {
                "attentions.0.query_pos_proj.{rest}": "self_attention.query_position_proj.{rest}",
                "attentions.0.key_pos_proj.{rest}": "self_attention.key_position_proj.{rest}",
                "attentions.0.{rest}": "self_attention.{rest}",
                "attentions.1.query_pos_sine_proj.{rest}": QUERY_ENCODING,
                "attentions.1.query_pos_proj.{rest}": "cross_attention.query_position_proj.{rest}",
                "attentions.1.key_pos_proj.{rest}": "cross_attention.key_encoding_proj.{rest}",
                "attentions.1.{rest}": "cross_attention.{rest}",
                "norms.0.{rest}": "self_attention_norm.{rest}",
                "norms.1.{rest}": "cross_attention_norm.{rest}",
                "norms.2.{rest}": "feed_forward_norm.{rest}",
                "ffns.0.layers.0.0.{rest}": "feed_forward.linear1.{rest}",
                "ffns.0.layers.0.1.{rest}": "feed_forward.activation.{rest}",
                "ffns.0.layers.1.{rest}": "feed_forward.linear2.{rest}",
            },
        ),
        # Detectron2's ResNet, torchvision's (for DC5), and whatever else
        ("backbone.stem.{rest}", "backbone.stem.{rest}"),
        ("backbone.res{i}.{rest}", "backbone.res{i}.{rest}"),
        *torchvision_resnet("backbone.body."),
        ("backbone.{rest}", "backbone.{rest}"),
    ),
    anchors="anchor_box_embed.weight",
    packed_qkv=ENCODER + "attentions.0.attn.in_proj_{rest}",
    raw_coco_ids=True,
    copies=(
        *HEAD_COPIES,
        (ENCODER + "ffns.0.activation.{rest}", ENCODER + "ffns.0.layers.0.1.{rest}"),
        (DECODER + "ffns.0.activation.{rest}", DECODER + "ffns.0.layers.0.1.{rest}"),
    ),
)
