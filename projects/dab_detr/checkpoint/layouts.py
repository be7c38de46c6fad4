"""How the same weights are named by this project and by others, as tables that work both ways.

In a row ``(theirs, ours)`` of templates ``{i}`` and ``{j}`` stand for numbers and ``{rest}``
for the end of the name. Both sides of a row use the same placeholders.
"""

import re
from dataclasses import dataclass, field, replace

_ENCODER = "transformer.encoder.layers.{i}."
_DECODER = "transformer.decoder.layers.{i}."
_QUERY_ENCODING = "cross_attention.query_encoding_proj"


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors of a DAB-DETR.

    Attributes:
        name: as given on the command line.
        mark: a regular expression that some tensor name of this layout, and of no other, matches.
        rows: see above; the first row that matches a name counts.
        anchors: the tensor (Q, query_dim) that holds centres and sizes together, if one does.
        copies: templates ``(copy, original)`` of tensors that the layout stores twice.
        separate_qkv: the encoder's packed projection, as three tensors named by this template.
        backbone_alone: it names a pre-trained backbone, no DAB-DETR.
        unused: regular expressions of tensors that carry nothing, with the reason.
    """

    name: str
    mark: str
    rows: tuple[tuple[str, str], ...]
    anchors: str | None = None
    copies: tuple[tuple[str, str], ...] = ()
    separate_qkv: str | None = None
    backbone_alone: bool = False
    unused: tuple[tuple[str, str], ...] = field(
        default=((r"num_batches_tracked$", "frozen batch norms do not count batches"),)
    )


def translate(
    name: str, rows: tuple[tuple[str, str], ...], *, backward: bool = False
) -> str | None:
    """The name in the other layout, or None if no row matches.

    Args:
        name: a tensor's name.
        rows: templates ``(theirs, ours)``.
        backward: from ours to theirs.
    """
    for theirs, ours in rows:
        source, target = (ours, theirs) if backward else (theirs, ours)
        match = _pattern(source).fullmatch(name)
        if match:
            return target.format(**match.groupdict())
    return None


_patterns: dict[str, re.Pattern] = {}


def _pattern(template: str) -> re.Pattern:
    if template not in _patterns:
        pattern = re.escape(template)
        for placeholder, group in (("i", r"\d+"), ("j", r"\d+"), ("rest", r".+")):
            pattern = pattern.replace(rf"\{{{placeholder}\}}", f"(?P<{placeholder}>{group})")
        _patterns[template] = re.compile(pattern)
    return _patterns[template]


def _prefixed(theirs: str, ours: str, rows: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((theirs + a, ours + b) for a, b in rows.items())


def _torchvision_resnet(prefix: str) -> tuple[tuple[str, str], ...]:
    """torchvision's ResNet (timm's has the same names) in Detectron2's."""
    rows = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.{rest}": "stem.conv1.norm.{rest}",
    }
    for stage in range(1, 5):
        block, own = f"layer{stage}.{{i}}.", f"res{stage + 1}.{{i}}."
        rows |= {
            block + "conv{j}.weight": own + "conv{j}.weight",
            block + "bn{j}.{rest}": own + "conv{j}.norm.{rest}",
            block + "downsample.0.weight": own + "shortcut.weight",
            block + "downsample.1.{rest}": own + "shortcut.norm.{rest}",
        }
    return _prefixed(prefix, "backbone.", rows)


def _transformers_resnet(prefix: str) -> tuple[tuple[str, str], ...]:
    """The ResNet of Hugging Face's transformers in Detectron2's names."""
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
    return _prefixed(prefix, "backbone.", rows)


_BOX_HEADS = (
    # one a layer, or one for all
    ("bbox_embed.{i}.layers.{rest}", "transformer.decoder.box_heads.{i}.layers.{rest}"),
    ("bbox_embed.layers.{rest}", "transformer.decoder.box_heads.0.layers.{rest}"),
)
_HEADS_AND_SHARED = (
    ("input_proj.{rest}", "transformer.input_proj.{rest}"),
    ("class_embed.{rest}", "transformer.decoder.class_head.{rest}"),
    ("transformer.patterns.{rest}", "transformer.anchors.patterns.{rest}"),
    ("transformer.encoder.query_scale.{rest}", "transformer.encoder.position_scale.{rest}"),
    ("transformer.decoder.query_scale.{rest}", "transformer.decoder.position_scale.{rest}"),
    ("transformer.decoder.ref_point_head.{rest}", "transformer.decoder.position_mlp.{rest}"),
    ("transformer.decoder.ref_anchor_head.{rest}", "transformer.decoder.reference_size.{rest}"),
)
_HEAD_COPIES = (
    ("transformer.decoder.bbox_embed.{i}.layers.{rest}", "bbox_embed.{i}.layers.{rest}"),
    ("transformer.decoder.bbox_embed.layers.{rest}", "bbox_embed.layers.{rest}"),
)

OFFICIAL = Layout(
    name="official",
    mark=r"transformer\.decoder\.layers\.0\.sa_qcontent_proj\.weight",
    rows=(
        *_HEADS_AND_SHARED,
        *_BOX_HEADS,
        ("transformer.decoder.norm.{rest}", "transformer.decoder.norm.{rest}"),
        *_prefixed(
            _ENCODER,
            _ENCODER,
            {
                "self_attn.in_proj_{rest}": "self_attention.in_proj.{rest}",
                "self_attn.out_proj.{rest}": "self_attention.out_proj.{rest}",
                "norm1.{rest}": "self_attention_norm.{rest}",
                "norm2.{rest}": "feed_forward_norm.{rest}",
                "linear{j}.{rest}": "feed_forward.linear{j}.{rest}",
                "activation.{rest}": "feed_forward.activation.{rest}",
            },
        ),
        *_prefixed(
            _DECODER,
            _DECODER,
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
        *_torchvision_resnet("backbone.0.body."),
    ),
    anchors="refpoint_embed.weight",
    copies=_HEAD_COPIES,
)

DETREX = Layout(
    name="detrex",
    mark=r"transformer\.decoder\.layers\.0\.attentions\.0\.query_content_proj\.weight",
    rows=(
        *_HEADS_AND_SHARED,
        *_BOX_HEADS,
        ("transformer.decoder.post_norm_layer.{rest}", "transformer.decoder.norm.{rest}"),
        *_prefixed(
            _ENCODER,
            _ENCODER,
            {
                "attentions.0.attn.in_proj_{rest}": "self_attention.in_proj.{rest}",
                "attentions.0.attn.out_proj.{rest}": "self_attention.out_proj.{rest}",
                "norms.0.{rest}": "self_attention_norm.{rest}",
                "norms.1.{rest}": "feed_forward_norm.{rest}",
                "ffns.0.layers.0.0.{rest}": "feed_forward.linear1.{rest}",
                "ffns.0.layers.0.1.{rest}": "feed_forward.activation.{rest}",
                "ffns.0.layers.1.{rest}": "feed_forward.linear2.{rest}",
            },
        ),
        *_prefixed(
            _DECODER,
            _DECODER,
            {
                "attentions.0.query_pos_proj.{rest}": "self_attention.query_position_proj.{rest}",
                "attentions.0.key_pos_proj.{rest}": "self_attention.key_position_proj.{rest}",
                "attentions.0.{rest}": "self_attention.{rest}",
                "attentions.1.query_pos_sine_proj.{rest}": f"{_QUERY_ENCODING}.{{rest}}",
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
        ("backbone.{rest}", "backbone.{rest}"),
    ),
    anchors="anchor_box_embed.weight",
    copies=(
        *_HEAD_COPIES,
        (_ENCODER + "ffns.0.activation.{rest}", _ENCODER + "ffns.0.layers.0.1.{rest}"),
        (_DECODER + "ffns.0.activation.{rest}", _DECODER + "ffns.0.layers.0.1.{rest}"),
    ),
)

HF = Layout(
    name="hf",
    mark=r"model\.decoder\.layers\.0\.self_attn\.self_attn_query_content_proj\.weight",
    rows=(
        ("model.input_projection.{rest}", "transformer.input_proj.{rest}"),
        ("class_embed.{rest}", "transformer.decoder.class_head.{rest}"),
        ("bbox_predictor.layers.{rest}", "transformer.decoder.box_heads.0.layers.{rest}"),
        ("model.patterns.{rest}", "transformer.anchors.patterns.{rest}"),
        ("model.encoder.query_scale.{rest}", "transformer.encoder.position_scale.{rest}"),
        ("model.decoder.query_scale.{rest}", "transformer.decoder.position_scale.{rest}"),
        ("model.decoder.ref_point_head.{rest}", "transformer.decoder.position_mlp.{rest}"),
        ("model.decoder.ref_anchor_head.{rest}", "transformer.decoder.reference_size.{rest}"),
        ("model.decoder.layernorm.{rest}", "transformer.decoder.norm.{rest}"),
        *_prefixed(
            "model.encoder.layers.{i}.",
            _ENCODER,
            {
                "self_attn.out_proj.{rest}": "self_attention.out_proj.{rest}",
                "self_attn_layer_norm.{rest}": "self_attention_norm.{rest}",
                "final_layer_norm.{rest}": "feed_forward_norm.{rest}",
                "fc{j}.{rest}": "feed_forward.linear{j}.{rest}",
                "activation_fn.{rest}": "feed_forward.activation.{rest}",
            },
        ),
        *_prefixed(
            "model.decoder.layers.{i}.self_attn.",
            _DECODER,
            {
                "self_attn_query_pos_proj.{rest}": "self_attention.query_position_proj.{rest}",
                "self_attn_key_pos_proj.{rest}": "self_attention.key_position_proj.{rest}",
                "self_attn_layer_norm.{rest}": "self_attention_norm.{rest}",
                "self_attn.output_proj.{rest}": "self_attention.out_proj.{rest}",
                "self_attn_{rest}": "self_attention.{rest}",
            },
        ),
        *_prefixed(
            "model.decoder.layers.{i}.cross_attn.",
            _DECODER,
            {
                "cross_attn_query_pos_sine_proj.{rest}": f"{_QUERY_ENCODING}.{{rest}}",
                "cross_attn_query_pos_proj.{rest}": "cross_attention.query_position_proj.{rest}",
                "cross_attn_key_pos_proj.{rest}": "cross_attention.key_encoding_proj.{rest}",
                "cross_attn_layer_norm.{rest}": "cross_attention_norm.{rest}",
                "cross_attn.output_proj.{rest}": "cross_attention.out_proj.{rest}",
                "cross_attn_{rest}": "cross_attention.{rest}",
            },
        ),
        *_prefixed(
            "model.decoder.layers.{i}.mlp.",
            _DECODER,
            {
                "final_layer_norm.{rest}": "feed_forward_norm.{rest}",
                "fc{j}.{rest}": "feed_forward.linear{j}.{rest}",
                "activation_fn.{rest}": "feed_forward.activation.{rest}",
            },
        ),
        # written in the first of these ways; read in all of them
        *_transformers_resnet("model.backbone.conv_encoder.model."),
        *_torchvision_resnet("model.backbone.conv_encoder.model._backbone."),
        *_torchvision_resnet("model.backbone.conv_encoder.model."),
    ),
    anchors="model.query_refpoint_embeddings.weight",
    copies=(("model.decoder.bbox_embed.layers.{rest}", "bbox_predictor.layers.{rest}"),),
    separate_qkv="model.encoder.layers.{i}.self_attn.{part}_proj.{rest}",
)

# as transformers writes it with a ResNet of timm, the only one that it can dilate
HF_TIMM = replace(
    HF, rows=(*_torchvision_resnet("model.backbone.conv_encoder.model._backbone."), *HF.rows)
)

_PRE_TRAINING = (
    (r"num_batches_tracked$", "frozen batch norms do not count batches"),
    (r"^(stem\.)?(fc|fc1000|linear)\.", "the classifier of the pre-training"),
)

TORCHVISION = Layout(
    name="torchvision",
    mark=r"layer1\.0\.conv1\.weight",
    rows=_torchvision_resnet(""),
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

# The project's own names. Files of version 0.1 show no more than these.
DAB_DETR = Layout(
    name="dab_detr",
    mark=r"transformer\.anchors\.center_logits",
    rows=(("{rest}", "{rest}"),),
    unused=(),
)

LAYOUTS = {
    layout.name: layout for layout in (DAB_DETR, OFFICIAL, DETREX, HF, TORCHVISION, DETECTRON2)
}


def recognise(names) -> Layout | None:
    """The layout whose mark one of the names matches."""
    for layout in LAYOUTS.values():
        mark = re.compile(layout.mark)
        if any(mark.fullmatch(name) for name in names):
            return layout
    return None
