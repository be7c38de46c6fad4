"""Tensor names of mmdetection (version 3)."""

from dab_detr.checkpoint.layout import DECODER, ENCODER, Layout, prefixed, torchvision_resnet

_FEED_FORWARD = {
    "ffn.layers.0.0.{rest}": "feed_forward.linear1.{rest}",
    "ffn.layers.0.1.{rest}": "feed_forward.activation.{rest}",
    "ffn.layers.1.{rest}": "feed_forward.linear2.{rest}",
}
_ATTENTION = {
    "qcontent_proj.{rest}": "query_content_proj.{rest}",
    "kcontent_proj.{rest}": "key_content_proj.{rest}",
    "qpos_proj.{rest}": "query_position_proj.{rest}",
    "v_proj.{rest}": "value_proj.{rest}",
    "out_proj.{rest}": "out_proj.{rest}",
}

MMDETECTION = Layout(
    name="mmdetection",
    mark=r"decoder\.layers\.0\.self_attn\.qcontent_proj\.weight",
    rows=(
        ("neck.convs.0.conv.{rest}", "input_proj.{rest}"),
        ("patterns.{rest}", "transformer.queries.patterns.{rest}"),
        ("bbox_head.fc_cls.{rest}", "transformer.decoder.class_head.{rest}"),
        ("bbox_head.fc_reg.layers.{rest}", "transformer.decoder.box_heads.0.layers.{rest}"),
        ("encoder.query_scale.{rest}", "transformer.encoder.position_scale.{rest}"),
        ("decoder.query_scale.{rest}", "transformer.queries.position_scale.{rest}"),
        ("decoder.ref_point_head.{rest}", "transformer.queries.position_mlp.{rest}"),
        ("decoder.ref_anchor_head.{rest}", "transformer.queries.reference_size.{rest}"),
        ("decoder.post_norm.{rest}", "transformer.decoder.norm.{rest}"),
        *prefixed(
            "encoder.layers.{i}.",
            ENCODER,
            {
                "self_attn.attn.out_proj.{rest}": "self_attention.out_proj.{rest}",
                "norms.0.{rest}": "self_attention_norm.{rest}",
                "norms.1.{rest}": "feed_forward_norm.{rest}",
                **_FEED_FORWARD,
            },
        ),
        *prefixed(
            "decoder.layers.{i}.self_attn.",
            DECODER + "self_attention.",
            {**_ATTENTION, "kpos_proj.{rest}": "key_position_proj.{rest}"},
        ),
        *prefixed(
            "decoder.layers.{i}.cross_attn.",
            DECODER + "cross_attention.",
            {
                **_ATTENTION,
                "kpos_proj.{rest}": "key_encoding_proj.{rest}",
                "qpos_sine_proj.{rest}": "query_encoding_proj.{rest}",
            },
        ),
        *prefixed(
            "decoder.layers.{i}.",
            DECODER,
            {
                "norms.0.{rest}": "self_attention_norm.{rest}",
                "norms.1.{rest}": "cross_attention_norm.{rest}",
                "norms.2.{rest}": "feed_forward_norm.{rest}",
                **_FEED_FORWARD,
            },
        ),
        *torchvision_resnet("backbone."),
    ),
    anchors="query_embedding.weight",
    packed_qkv="encoder.layers.{i}.self_attn.attn.in_proj_{rest}",
    # mmcv before version 2 stores the activation twice
    copies=tuple(
        (
            f"{part}.layers.{{i}}.ffn.activate.{{rest}}",
            f"{part}.layers.{{i}}.ffn.layers.0.1.{{rest}}",
        )
        for part in ("encoder", "decoder")
    ),
)
