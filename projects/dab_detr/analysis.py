"""Parameters, multiply-adds and memory of a model."""

import re
import weakref
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from fvcore.nn import FlopCountAnalysis, parameter_count
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dab_detr.modeling.meta_arch import DABDETR

PARTS = ("backbone", "input_proj", "encoder", "queries", "decoder")


def _attention_flops(inputs: list, outputs: list) -> Counter:
    """Multiply-adds of two matrix products: queries with keys, attention weights with values."""
    query, key, value = (x.type().sizes() for x in inputs[:3])
    batch, heads, queries, width = query
    pairs = batch * heads * queries * key[2]
    return Counter({"scaled_dot_product_attention": pairs * (width + value[3])})


@torch.no_grad()
def count_flops(model: DABDETR, height: int = 800, width: int = 1280) -> dict[str, float]:
    """Multiply-adds (counted once each) for one image of this size, by part of the model.

    Counts convolutions, matrix products, attention, and fvcore's other operations; element-wise
    operations cost little and are left out.

    Returns:
        GFLOPs of each of :data:`PARTS`, their ``total``, and ``as the paper counts``: convolutions,
        attention's products and the projections of the encoder's attention, see docs/MODEL_ZOO.md.
    """
    was_training = model.training
    core = model.eval().core.eval()
    image = torch.zeros(1, 3, height, width, device=model.device)
    analysis = FlopCountAnalysis(core, image)
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
    """Number of parameters and of frozen ones, by part and in total."""
    counts = parameter_count(model)
    modules = {**{part: _module_name(part) for part in PARTS}, "total": ""}
    return {
        part: {"parameters": counts[name], "frozen": _frozen(model.get_submodule(name))}
        for part, name in modules.items()
    }


def _frozen(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if not p.requires_grad)


def analyze(model: DABDETR, height: int = 800, width: int = 1280) -> dict[str, dict[str, Any]]:
    """Results of :func:`count_parameters` and :func:`count_flops`, by part and in total."""
    counts = count_parameters(model)
    return {
        part: {**counts.get(part, {}), "gflops": round(gflops, 3)}
        for part, gflops in count_flops(model, height, width).items()
    }


def example_batch(
    batch_size: int, height: int, width: int, num_classes: int
) -> list[dict[str, Any]]:
    """A fixed batch of Detectron2's dicts: images of coloured blocks with ten objects each."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([width, height] * 2)
    batch = []
    for _ in range(batch_size):
        size = 0.05 + 0.35 * torch.rand(10, 2, generator=generator)
        corner = (1 - size) * torch.rand(10, 2, generator=generator)
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(torch.cat((corner, corner + size), dim=1) * scale),
            gt_classes=torch.randint(num_classes, (10,), generator=generator),
        )
        # fine noise would average out in the backbone, so that all images would look the same
        blocks = 256 * torch.rand(1, 3, 8, 8, generator=generator)
        pixels = F.interpolate(blocks, size=(height, width))[0].to(torch.uint8)
        batch.append({"image": pixels, "instances": instances})
    return batch


def training_memory(
    model: DABDETR,
    batch_size: int,
    height: int = 800,
    width: int = 1333,
    amp_dtype: torch.dtype | None = None,
) -> float:
    """Peak bytes of all tensors in a training step with AdamW.

    Weights, gradients, optimizer state and activations, counted during a step on images of coloured
    blocks with ten objects each. A GPU needs about 1 to 2 GB more, for workspaces of its libraries
    and fragmentation.

    Args:
        model: in training mode; its weights are changed.
        amp_dtype: autocast precision; None for float32.
    """
    device = model.device
    batch = example_batch(batch_size, height, width, model.num_classes)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0)
    with _MemoryCounter() as counter:
        # the optimizer has its state only in the second step
        for _ in range(2):
            enabled = amp_dtype is not None
            with torch.autocast(device.type, dtype=amp_dtype, enabled=enabled):
                loss = sum(model(batch).values())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    outside = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    return counter.peak + outside


class _MemoryCounter(TorchDispatchMode):
    """Adds up the sizes of all living storages that operations have made.

    Attributes:
        peak: the largest sum, in bytes.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._now = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        inputs: set[int] = set()
        # the result can be a view of an input, or the input itself
        tree_map_only(Tensor, lambda x: inputs.add(x.untyped_storage()._cdata), (args, kwargs))
        tree_map_only(Tensor, lambda x: self._note(x, inputs), result)
        return result

    def _note(self, tensor: Tensor, inputs: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in inputs:
            return
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _module_name(part: str) -> str:
    return part if part in ("backbone", "input_proj") else f"transformer.{part}"
