"""Tensor names of Hugging Face's transformers."""

from dataclasses import replace

from dab_detr.checkpoint.layout import (
    DECODER,
    ENCODER,
    PUBLISHED_SETTINGS,
    QUERY_ENCODING,
    Layout,
    prefixed,
    torchvision_resnet,
)


def transformers_resnet(prefix: str) -> tuple[tuple[str, str], ...]:
    """Rows for the ResNet of transformers and Detectron2's names."""
    rows = {
        "embedder.embedder.convolution.weight": "stem.conv1.weight",
        "embedder.embedder.normalization.{rest}": "stem.conv1.norm.{rest}",
    }
    for stage in range(4):
        block, own = f"encoder.stages.{stage}.layers.{{i}}.", f"res{stage + 2}.{{i}}."
        rows |= {
            block + "shortcut.convolution.weight": own + "shortcut.weight",
            block + "shortcut.normalization.{rest}": own + "shortcut.norm.{rest}",
        }
        for conv in range(3):
            rows |= {
                f"{block}layer.{conv}.convolution.weight": f"{own}conv{conv + 1}.weight",
                f"{block}layer.{conv}.normalization.{{rest}}": f"{own}conv{conv + 1}.norm.{{rest}}",
            }
    return prefixed(prefix, "backbone.", rows)


HF = Layout(
    name="hf",
    mark=r"model\.decoder\.layers\.0\.self_attn\.self_attn_query_content_proj\.weight",
    rows=(
        ("model.input_projection.{rest}", "input_proj.{rest}"),
        ("class_embed.{rest}", "transformer.decoder.class_head.{rest}"),
        ("bbox_predictor.layers.{rest}", "transformer.decoder.box_heads.0.layers.{rest}"),
        ("model.patterns.{rest}", "transformer.queries.patterns.{rest}"),
        ("model.encoder.query_scale.{rest}", "transformer.encoder.position_scale.{rest}"),
        ("model.decoder.query_scale.{rest}", "transformer.queries.position_scale.{rest}"),
        ("model.decoder.ref_point_head.{rest}", "transformer.queries.position_mlp.{rest}"),
        ("model.decoder.ref_anchor_head.{rest}", "transformer.queries.reference_size.{rest}"),
        ("model.decoder.layernorm.{rest}", "transformer.decoder.norm.{rest}"),
        *prefixed(
            "model.encoder.layers.{i}.",
            ENCODER,
            {
                "self_attn.q_proj.{rest}": "self_attention.query_proj.{rest}",
                "self_attn.k_proj.{rest}": "self_attention.key_proj.{rest}",
                "self_attn.v_proj.{rest}": "self_attention.value_proj.{rest}",
                "self_attn.out_proj.{rest}": "self_attention.out_proj.{rest}",
                "self_attn_layer_norm.{rest}": "self_attention_norm.{rest}",
                "final_layer_norm.{rest}": "feed_forward_norm.{rest}",
                "fc{j}.{rest}": "feed_forward.linear{j}.{rest}",
                "activation_fn.{rest}": "feed_forward.activation.{rest}",
            },
        ),
        *prefixed(
            "model.decoder.layers.{i}.self_attn.",
            DECODER,
            {
                "self_attn_query_pos_proj.{rest}": "self_attention.query_position_proj.{rest}",
                "self_attn_key_pos_proj.{rest}": "self_attention.key_position_proj.{rest}",
                "self_attn_layer_norm.{rest}": "self_attention_norm.{rest}",
                "self_attn.output_proj.{rest}": "self_attention.out_proj.{rest}",
                "self_attn_{rest}": "self_attention.{rest}",
            },
        ),
        *prefixed(
            "model.decoder.layers.{i}.cross_attn.",
            DECODER,
            {
                "cross_attn_query_pos_sine_proj.{rest}": QUERY_ENCODING,
                "cross_attn_query_pos_proj.{rest}": "cross_attention.query_position_proj.{rest}",
                "cross_attn_key_pos_proj.{rest}": "cross_attention.key_encoding_proj.{rest}",
                "cross_attn_layer_norm.{rest}": "cross_attention_norm.{rest}",
                "cross_attn.output_proj.{rest}": "cross_attention.out_proj.{rest}",
                "cross_attn_{rest}": "cross_attention.{rest}",
            },
        ),
        *prefixed(
            "model.decoder.layers.{i}.mlp.",
            DECODER,
            {
                "final_layer_norm.{rest}": "feed_forward_norm.{rest}",
                "fc{j}.{rest}": "feed_forward.linear{j}.{rest}",
                "activation_fn.{rest}": "feed_forward.activation.{rest}",
            },
        ),
        # the first is written; all are read
        *transformers_resnet("model.backbone.conv_encoder.model."),
        *torchvision_resnet("model.backbone.conv_encoder.model._backbone."),
        *torchvision_resnet("model.backbone.conv_encoder.model."),
    ),
    anchors="model.query_refpoint_embeddings.weight",
    raw_coco_ids=True,
    copies=(("model.decoder.bbox_embed.layers.{rest}", "bbox_predictor.layers.{rest}"),),
    settings=PUBLISHED_SETTINGS,
)

# transformers' names with a ResNet of timm, the only one that it can dilate
HF_TIMM = replace(
    HF, rows=(*torchvision_resnet("model.backbone.conv_encoder.model._backbone."), *HF.rows)
)
