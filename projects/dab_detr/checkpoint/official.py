"""Tensor names of the published code, and those that other layouts share with it."""

from dab_detr.checkpoint.layout import (
    DECODER,
    ENCODER,
    PUBLISHED_SETTINGS,
    Layout,
    prefixed,
    torchvision_resnet,
)

BOX_HEADS = (
    # one per layer, or one for all layers
    ("bbox_embed.{i}.layers.{rest}", "transformer.decoder.box_heads.{i}.layers.{rest}"),
    ("bbox_embed.layers.{rest}", "transformer.decoder.box_heads.0.layers.{rest}"),
)
HEADS_AND_SHARED = (
    ("input_proj.{rest}", "input_proj.{rest}"),
    ("class_embed.{rest}", "transformer.decoder.class_head.{rest}"),
    ("transformer.patterns.{rest}", "transformer.queries.patterns.{rest}"),
    ("transformer.encoder.query_scale.{rest}", "transformer.encoder.position_scale.{rest}"),
    ("transformer.decoder.query_scale.{rest}", "transformer.queries.position_scale.{rest}"),
    ("transformer.decoder.ref_point_head.{rest}", "transformer.queries.position_mlp.{rest}"),
    ("transformer.decoder.ref_anchor_head.{rest}", "transformer.queries.reference_size.{rest}"),
)
HEAD_COPIES = (
    ("transformer.decoder.bbox_embed.{i}.layers.{rest}", "bbox_embed.{i}.layers.{rest}"),
    ("transformer.decoder.bbox_embed.layers.{rest}", "bbox_embed.layers.{rest}"),
)

OFFICIAL = Layout(
    name="official",
    mark=r"transformer\.decoder\.layers\.0\.sa_qcontent_proj\.weight",
    rows=(
        *HEADS_AND_SHARED,
        *BOX_HEADS,
        ("transformer.decoder.norm.{rest}", "transformer.decoder.norm.{rest}"),
        *prefixed(
            ENCODER,
            ENCODER,
            {
                "self_attn.out_proj.{rest}": "self_attention.out_proj.{rest}",
                "norm1.{rest}": "self_attention_norm.{rest}",
                "norm2.{rest}": "feed_forward_norm.{rest}",
                "linear{j}.{rest}": "feed_forward.linear{j}.{rest}",
                "activation.{rest}": "feed_forward.activation.{rest}",
            },
        ),
        *prefixed(
            DECODER,
            DECODER,
            {
                "sa_qcontent_proj.{rest}": "self_attention.query_content_proj.{rest}",
                "sa_qpos_proj.{rest}": "self_attention.query_position_proj.{rest}",
                "sa_kcontent_proj.{rest}": "self_attention.key_content_proj.{rest}",
                "sa_kpos_proj.{rest}": "self_attention.key_position_proj.{rest}",
                "sa_v_proj.{rest}": "self_attention.value_proj.{rest}",
                "self_attn.out_proj.{rest}": "self_attention.out_proj.{rest}",
                "ca_qcontent_proj.{rest}": "cross_attention.query_content_proj.{rest}",
                "ca_qpos_proj.{rest}": "cross_attention.query_position_proj.{rest}",
                "ca_qpos_sine_proj.{rest}": "cross_attention.query_encoding_proj.{rest}",
                "ca_kcontent_proj.{rest}": "cross_attention.key_content_proj.{rest}",
                "ca_kpos_proj.{rest}": "cross_attention.key_encoding_proj.{rest}",
                "ca_v_proj.{rest}": "cross_attention.value_proj.{rest}",
                "cross_attn.out_proj.{rest}": "cross_attention.out_proj.{rest}",
                "norm1.{rest}": "self_attention_norm.{rest}",
                "norm2.{rest}": "cross_attention_norm.{rest}",
                "norm3.{rest}": "feed_forward_norm.{rest}",
                "linear{j}.{rest}": "feed_forward.linear{j}.{rest}",
                "activation.{rest}": "feed_forward.activation.{rest}",
            },
        ),
        *torchvision_resnet("backbone.0.body."),
    ),
    anchors="refpoint_embed.weight",
    raw_coco_ids=True,
    copies=HEAD_COPIES,
    packed_qkv=ENCODER + "self_attn.in_proj_{rest}",
    settings=PUBLISHED_SETTINGS,
)
