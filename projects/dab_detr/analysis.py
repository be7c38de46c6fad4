"""Parameters and multiply-adds of a model."""

import re
from collections import Counter
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from dab_detr.modeling.meta_arch import DABDETR

PARTS = ("backbone", "input_proj", "encoder", "anchors", "decoder")


class _Network(nn.Module):
    """From normalised pixels to the last layer's logits: what an image costs at inference."""

    def __init__(self, model: DABDETR):
        super().__init__()
        self.backbone = model.backbone
        self.transformer = model.transformer
        self.level = model.in_feature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.transformer(self.backbone(images)[self.level], all_layers=False)


def _attention_flops(inputs: list, outputs: list) -> Counter:
    """Two matrix products: queries with keys, weights with values."""
    query, key, value = (x.type().sizes() for x in inputs[:3])
    batch, heads, queries, width = query
    pairs = batch * heads * queries * key[2]
    return Counter({"scaled_dot_product_attention": pairs * (width + value[3])})


@torch.no_grad()
def count_flops(model: DABDETR, height: int = 800, width: int = 1280) -> dict[str, float]:
    """Multiply-adds (each counted once) for one image of that size, by part.

    Convolutions, matrix products, attention, and fvcore's other operations with a known count;
    element-wise ones cost little and are left out.

    Returns:
        GFLOPs of each of :data:`PARTS`, in ``total``, and ``as the paper counts``: convolutions,
        attention's products and the projections of the encoder's attention, see docs/MODEL_ZOO.md.
    """
    was_training = model.training
    network = _Network(model.eval())
    image = torch.zeros(1, 3, height, width, device=model.device)
    analysis = FlopCountAnalysis(network, image)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_module = analysis.by_module()
    model.train(was_training)
    gflops = {part: by_module[_module_name(part)] / 1e9 for part in PARTS}
    counts = analysis.by_module_and_operator()
    published = counts[""]["conv"] + counts[""]["scaled_dot_product_attention"]
    for name, operators in counts.items():
        if re.fullmatch(r"transformer\.encoder\.layers\.\d+\.self_attention", name):
            published += operators["linear"]
    return {**gflops, "as the paper counts": published / 1e9, "total": by_module[""] / 1e9}


def count_parameters(model: DABDETR) -> dict[str, dict[str, int]]:
    """Number of all and of frozen parameters, by part and in total."""
    counts = {part: {"parameters": 0, "frozen": 0} for part in (*PARTS, "total")}
    for name, parameter in model.named_parameters():
        part = next(part for part in PARTS if name.startswith(f"{_module_name(part)}."))
        for row in (counts[part], counts["total"]):
            row["parameters"] += parameter.numel()
            row["frozen"] += 0 if parameter.requires_grad else parameter.numel()
    return counts


def analyze(model: DABDETR, height: int = 800, width: int = 1280) -> dict[str, dict[str, Any]]:
    """Parameters and GFLOPs by part and in total; see the functions above."""
    counts = count_parameters(model)
    return {
        part: {**counts.get(part, {}), "gflops": round(gflops, 3)}
        for part, gflops in count_flops(model, height, width).items()
    }


def _module_name(part: str) -> str:
    return part if part == "backbone" else f"transformer.{part}"
