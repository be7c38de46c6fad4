"""Tensor names of this project's version 0.1."""

from dab_detr.checkpoint.layout import ENCODER, Layout

VERSION_1 = Layout(
    name="dab_detr 0.1",
    mark=r"transformer\.anchors\.center_logits",
    rows=(
        ("transformer.input_proj.{rest}", "input_proj.{rest}"),
        ("transformer.anchors.{rest}", "transformer.queries.{rest}"),
        *(
            (f"transformer.decoder.{part}.{{rest}}", f"transformer.queries.{part}.{{rest}}")
            for part in ("position_mlp", "position_scale", "reference_size")
        ),
        # all other names are unchanged
        ("{rest}", "{rest}"),
    ),
    packed_qkv=ENCODER + "self_attention.in_proj.{rest}",
    unused=(),
    is_own=True,
)
