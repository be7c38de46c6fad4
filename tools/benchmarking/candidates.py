"""The candidates: this project's model in several modes, and transformers' with the same weights.

Each function is called in a candidate's process and returns its work; all get the same weights,
images and objects.
"""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.ops import box_convert

from benchmarking.interleaved import Work
from dab_detr.analysis import example_batch
from dab_detr.checkpoint import Checkpointer
from dab_detr.checkpoint.conversion import to_dab_detr
from dab_detr.checkpoint.settings import settings_of_model
from dab_detr.checkpoint.writing import write_hf
from dab_detr.compiling import compile_for_training
from dab_detr.config import build, get_config
from dab_detr.engine.trainer import AMP_DTYPES
from dab_detr.errors import InputError
from dab_detr.inference.copy import inference_copy
from dab_detr.modeling.meta_arch import DABDETR

DTYPES = {"float32": None, **AMP_DTYPES}


class Setting(NamedTuple):
    """The input that all candidates share.

    Attributes:
        folder: where :func:`write_weights` saved the weights.
        config_file, overrides: see :func:`dab_detr.config.get_config`.
        batch, height, width: number and size of the images, in pixels.
        device: a torch device.
        dtype: autocast precision, a key of :data:`DTYPES`.
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


def write_weights(setting: Setting, checkpoint: str | None = None) -> DABDETR:
    """Make a model with seeded random weights and save them for our candidates.

    Args:
        checkpoint: weights to use instead of random ones.

    The random weights are rescaled so that outputs depend on the image and on every part of the
    model: right after initialisation, norms do nothing and all scores are equal.

    Returns:
        The model, in evaluation mode on the CPU.
    """
    torch.manual_seed(0)
    model = _build(setting).eval()
    if checkpoint is None:
        _randomize(model)
    else:
        Checkpointer(model, complete=True).load(checkpoint)
    torch.save(model.state_dict(), setting.folder / "weights.pth")
    return model


@torch.no_grad()
def _randomize(model: DABDETR) -> None:
    for box_head in model.transformer.decoder.box_heads:
        box_head.layers[-1].weight.normal_(std=0.3)
    class_head = model.transformer.decoder.class_head
    class_head.weight.normal_(std=2 * class_head.in_features**-0.5)
    class_head.bias.zero_()
    for norm in model.backbone.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.5, 1.0)
            norm.bias.normal_(std=0.1)


def write_transformers(setting: Setting, model: DABDETR) -> None:
    """Save the same weights for transformers' model.

    Raises:
        InputError: if transformers is missing or has no such model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise InputError("This compares with transformers: pip install 'dab_detr[benchmark]'.")
    settings = settings_of_model(model)
    write_hf(
        model.state_dict(),
        setting.folder / "hf",
        num_heads=settings["num_heads"],
        key_temperature=settings["key_temperature"],
        settings=settings,
    )


def load_ours(setting: Setting) -> DABDETR:
    """The model of the setting on its device, in evaluation mode."""
    model = _build(setting)
    model.load_state_dict(torch.load(setting.folder / "weights.pth", weights_only=True))
    return model.eval().to(setting.device)


def load_transformers(setting: Setting) -> nn.Module:
    """The same weights in transformers' model, on the setting's device."""
    import transformers

    transformers.logging.disable_progress_bar()
    model = transformers.DabDetrForObjectDetection.from_pretrained(setting.folder / "hf")
    for name, parameter in model.named_parameters():
        if "embedder" in name or "stages.0." in name:
            parameter.requires_grad_(False)
    return model.to(setting.device)


def infer_ours(
    setting: Setting, *, fast: bool = False, compile: bool = False, cuda_graphs: bool = False
) -> Work:
    """Inference from normalised pixels to the last layer's class logits and boxes."""
    model = load_ours(setting)
    pixels = _normalized(setting)
    if fast:
        model = inference_copy(model, compile=compile, cuda_graphs=cuda_graphs)
    core = model.core.eval()

    def predict() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), setting.autocast():
            class_logits, box_logits = core(pixels)
            return class_logits, box_logits.sigmoid()

    return Work(predict, lambda: _prediction(setting, *predict()))


def infer_transformers(setting: Setting, *, compile: bool = False) -> Work:
    """Inference with transformers' model."""
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


def train_ours(setting: Setting, *, compile: bool = False, channels_last: bool = True) -> Work:
    """A training step: forward, losses, backward, clipping, AdamW."""
    model = load_ours(setting).train()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    batch = images(setting)
    if compile:
        compile_for_training(model.transformer)
    return _training(model, lambda: sum(model(batch).values()), _gradients, setting)


def train_transformers(setting: Setting) -> Work:
    """A training step with transformers' model."""
    pixels = _normalized(setting)
    model = load_transformers(setting).train()
    # the published losses are those of all layers
    model.config.auxiliary_loss = True
    mask = torch.ones(pixels[:, 0].shape, dtype=torch.long, device=setting.device)
    scale = torch.tensor([setting.width, setting.height] * 2)
    targets = []
    for image in images(setting):
        objects = image["instances"]
        boxes = box_convert(objects.gt_boxes.tensor, "xyxy", "cxcywh") / scale
        targets.append(
            {
                "class_labels": objects.gt_classes.to(setting.device),
                "boxes": boxes.to(setting.device),
            }
        )

    def loss() -> Tensor:
        return model(pixel_values=pixels, pixel_mask=mask, labels=targets).loss

    def gradients(model: nn.Module) -> dict[str, Tensor]:
        return to_dab_detr(_gradients(model)).state

    return _training(model, loss, gradients, setting)


def matrix_product(device: str, dtype: str) -> Work:
    """Products of two square matrices into allocated memory, large enough for full speed."""
    # several products per run, so that the clock is precise enough
    size, repeats = (2048, 4) if device == "cpu" else (8192, 10)
    kind = DTYPES[dtype] or torch.float32
    a, b, product = (torch.randn(size, size).to(device, kind) for _ in range(3))

    def run() -> None:
        for _ in range(repeats):
            torch.mm(a, b, out=product)

    flops = torch.tensor(2.0 * size**3 * repeats, dtype=torch.float64)
    return Work(run, lambda: {"flops": flops})


def _build(setting: Setting) -> DABDETR:
    return build(get_config(setting.config_file, setting.overrides), "model")


def model_config(setting: Setting) -> DictConfig:
    """The section ``model`` of the config."""
    return get_config(setting.config_file, setting.overrides).model


def images(setting: Setting) -> list[dict]:
    """Detectron2's dicts of the images, see :func:`dab_detr.analysis.example_batch`."""
    num_classes = model_config(setting).num_classes
    return example_batch(setting.batch, setting.height, setting.width, num_classes)


def _normalized(setting: Setting) -> Tensor:
    """Pixels ``(B, 3, H, W)``, float32, normalised as our model does, on the setting's device."""
    cfg = model_config(setting)
    mean, std = (torch.tensor(list(x)).view(-1, 1, 1) for x in (cfg.pixel_mean, cfg.pixel_std))
    pixels = torch.stack([image["image"] for image in images(setting)])
    return ((pixels - mean) / std).to(setting.device)


def _prediction(setting: Setting, class_logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Leaves logits out in 16 bits: rounding one already exceeds the tolerance of scores."""
    outcome = {"scores": class_logits.float().sigmoid(), "boxes": boxes.float()}
    return outcome if DTYPES[setting.dtype] else {"class logits": class_logits, **outcome}


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by the names of the state dict; zeros for tensors that are not trained."""
    trained = {
        name: parameter.grad
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.grad is not None
    }
    return {name: trained.get(name, torch.zeros_like(x)) for name, x in model.state_dict().items()}


def _training(
    model: nn.Module,
    loss: Callable[[], Tensor],
    gradients: Callable[[nn.Module], dict[str, Tensor]],
    setting: Setting,
) -> Work:
    """The work of a step; ``gradients`` returns those of a model after it, by our names."""
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

    def outcome() -> dict[str, Tensor]:
        total, norm = gradient()
        found = gradients(model)
        norms = [found[name].float().norm() for name in sorted(found)]
        return {
            "loss": total,
            "norm of the gradient": norm,
            "norms of the tensors' gradients": torch.stack(norms),
        }

    return Work(step, outcome)
