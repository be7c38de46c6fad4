"""What is compared: this project's model in its modes, transformers' model with the same weights.

Each function is called in the process of a contestant and gives its work; all see the same weights,
images and objects.
"""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from dab_detr.benchmark.turns import Work
from dab_detr.checkpoint.writing import write_hf
from dab_detr.config import get_config
from dab_detr.errors import InputError
from dab_detr.inference.copy import inference_copy
from dab_detr.modeling.meta_arch import DABDETR

OBJECTS_AN_IMAGE = 10
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Setting(NamedTuple):
    """What all contestants are given.

    Attributes:
        folder: where :func:`write_weights` has left the weights.
        config_file, overrides: see :func:`dab_detr.config.get_config`.
        batch, height, width: of the images.
        device: a torch device.
        dtype: of autocast, a key of :data:`DTYPES`.
    """

    folder: Path
    config_file: str
    overrides: list[str]
    batch: int
    height: int
    width: int
    device: str
    dtype: str

    def autocast(self) -> AbstractContextManager:
        """The context in which the models run."""
        dtype = DTYPES[self.dtype]
        return torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None)


def write_weights(setting: Setting) -> DABDETR:
    """Make a model, random but for its seed, and leave its weights for all contestants.

    Returns:
        The model, in evaluation mode on the CPU.

    Raises:
        InputError: if transformers is missing or has no such model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise InputError("This compares with transformers: pip install 'dab_detr[benchmark]'.")
    torch.manual_seed(0)
    cfg = get_config(setting.config_file, setting.overrides)
    model = instantiate(cfg.model).eval()
    with torch.no_grad():
        for box_head in model.transformer.decoder.box_heads:
            # a head that starts with zeros moves no anchor, and outputs would agree too easily
            box_head.layers[-1].weight.normal_(std=0.02)
    torch.save(model.state_dict(), setting.folder / "weights.pth")
    write_hf(
        model.state_dict(),
        setting.folder / "hf",
        num_heads=cfg.model.num_heads,
        key_temperature=cfg.model.key_temperature,
    )
    return model


def load_ours(setting: Setting) -> DABDETR:
    """The model of the setting on its device, in evaluation mode."""
    model = instantiate(get_config(setting.config_file, setting.overrides).model)
    model.load_state_dict(torch.load(setting.folder / "weights.pth", weights_only=True))
    return model.eval().to(setting.device)


def load_transformers(setting: Setting) -> nn.Module:
    """The same weights in transformers' model, on the setting's device."""
    import transformers

    transformers.logging.disable_progress_bar()
    model = transformers.DabDetrForObjectDetection.from_pretrained(setting.folder / "hf")
    # the published losses are those of all layers
    model.config.auxiliary_loss = True
    for name, parameter in model.named_parameters():
        if "embedder" in name or "stages.0." in name:
            parameter.requires_grad_(False)
    return model.to(setting.device)


def random_pixels(setting: Setting) -> Tensor:
    """Images ``(B, 3, H, W)`` of noise in 0..255, uint8, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    size = (setting.batch, 3, setting.height, setting.width)
    return torch.randint(256, size, generator=generator, dtype=torch.uint8)


def random_targets(setting: Setting, num_classes: int) -> list[tuple[Tensor, Tensor]]:
    """Labels ``(N,)`` and boxes ``(N, 4)``, cxcywh in 0..1, of each image."""
    generator = torch.Generator().manual_seed(2)
    targets = []
    for _ in range(setting.batch):
        size = 0.05 + 0.35 * torch.rand(OBJECTS_AN_IMAGE, 2, generator=generator)
        center = size / 2 + (1 - size) * torch.rand(OBJECTS_AN_IMAGE, 2, generator=generator)
        labels = torch.randint(num_classes, (OBJECTS_AN_IMAGE,), generator=generator)
        targets.append((labels, torch.cat((center, size), dim=1)))
    return targets


def training_inputs(setting: Setting, num_classes: int) -> list[dict]:
    """The batch as Detectron2's mappers make it."""
    scale = torch.tensor([setting.width, setting.height] * 2)
    return [
        {
            "image": pixels,
            "instances": Instances(
                (setting.height, setting.width),
                gt_boxes=Boxes(box_convert(boxes, "cxcywh", "xyxy") * scale),
                gt_classes=labels,
            ),
        }
        for pixels, (labels, boxes) in zip(
            random_pixels(setting), random_targets(setting, num_classes)
        )
    ]


def infer_ours(setting: Setting, *, fast: bool = False, compile: bool = False) -> Work:
    """From normalised pixels to the last layer's logits and boxes."""
    model = load_ours(setting)
    pixels = _normalized(setting)
    if fast:
        model = inference_copy(model, compile=compile)

    def predict() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), setting.autocast():
            features = model.backbone(pixels)[model.in_feature]
            class_logits, box_logits = model.transformer(features, all_layers=False)
            return class_logits[-1], box_logits[-1].sigmoid()

    return Work(predict, lambda: _prediction(setting, *predict()))


def infer_transformers(setting: Setting, *, compile: bool = False) -> Work:
    """The same with transformers' model."""
    pixels = _normalized(setting)
    model = load_transformers(setting).eval()
    mask = torch.ones(pixels[:, 0].shape, dtype=torch.long, device=setting.device)
    if compile:
        model.compile(options={"freezing": True})

    def predict() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), setting.autocast():
            output = model(pixel_values=pixels, pixel_mask=mask)
            return output.logits, output.pred_boxes

    return Work(predict, lambda: _prediction(setting, *predict()))


def train_ours(setting: Setting, *, compile: bool = False) -> Work:
    """A training step: forward, losses, backward, clipping, AdamW."""
    model = load_ours(setting).train()
    batch = training_inputs(setting, model.num_classes)
    if compile:
        model.transformer.compile(dynamic=True)
    return _training(model, lambda: sum(model(batch).values()), setting)


def train_transformers(setting: Setting) -> Work:
    """The same with transformers' model."""
    pixels = _normalized(setting)
    model = load_transformers(setting).train()
    mask = torch.ones(pixels[:, 0].shape, dtype=torch.long, device=setting.device)
    targets = [
        {"class_labels": labels.to(setting.device), "boxes": boxes.to(setting.device)}
        for labels, boxes in random_targets(setting, model.config.num_labels)
    ]

    def loss() -> Tensor:
        return model(pixel_values=pixels, pixel_mask=mask, labels=targets).loss

    return _training(model, loss, setting)


def matrix_product(device: str, dtype: str, size: int = 2048) -> Work:
    """What the device does at best: one product of two square matrices."""
    kind = DTYPES[dtype] or torch.float32
    a, b = (torch.randn(size, size).to(device, kind) for _ in range(2))
    # long enough for the clock
    repeats = 4 if device == "cpu" else 200

    def run() -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    flops = torch.tensor(2.0 * size**3 * repeats, dtype=torch.float64)
    return Work(run, lambda: {"flops": flops})


def _normalized(setting: Setting) -> Tensor:
    """Float32 ``(B, 3, H, W)`` on the setting's device, as our model makes them of its images."""
    model = get_config(setting.config_file, setting.overrides).model
    mean, std = (torch.tensor(list(x)).view(-1, 1, 1) for x in (model.pixel_mean, model.pixel_std))
    return ((random_pixels(setting) - mean) / std).to(setting.device)


def _prediction(setting: Setting, class_logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """In 16 bits the last rounding of a logit alone is larger than what scores may differ."""
    outcome = {"scores": class_logits.float().sigmoid(), "boxes": boxes.float()}
    return outcome if DTYPES[setting.dtype] else {"class logits": class_logits, **outcome}


def _training(model: nn.Module, loss: Callable[[], Tensor], setting: Setting) -> Work:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)

    def gradient() -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        with setting.autocast():
            total = loss()
        total.backward()
        return total.detach(), nn.utils.clip_grad_norm_(weights, 0.1)

    def step() -> None:
        gradient()
        optimizer.step()

    return Work(step, lambda: dict(zip(("loss", "norm of the gradient"), gradient())))
