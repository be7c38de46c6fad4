"""Atomic writing of checkpoints: an interruption leaves no incomplete file."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from dab_detr.checkpoint.architecture import RESNET_DEPTHS, architecture
from dab_detr.checkpoint.classes import CLASS_WEIGHT
from dab_detr.checkpoint.conversion import from_dab_detr, require_settings
from dab_detr.checkpoint.description import KEY
from dab_detr.checkpoint.huggingface import HF, HF_TIMM
from dab_detr.errors import InputError
from dab_detr.files import atomic_write


def refuse_existing(path: str | os.PathLike, force: bool) -> None:
    """Raise InputError if something at ``path`` must not be replaced."""
    if os.path.exists(path) and not force:
        raise InputError(f"{path} already exists; --force replaces it.")
    if os.path.isdir(path) and not (Path(path) / "config.json").is_file():
        raise InputError(f"{path} is a directory without config.json and is not replaced.")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"There is no folder {Path(path).absolute().parent} to write into.")


def write_state(
    state: Mapping[str, Tensor],
    path: str | os.PathLike,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors atomically, in the format of the file's suffix.

    Args:
        path: ``.pth``, ``.pt`` and ``.bin`` get ``{"model": state}``, ``.safetensors`` the tensors.
        description: result of :func:`dab_detr.checkpoint.description.describe`, which marks the
            file as this project's own; None for another layout.

    Raises:
        InputError: for another suffix, or if ``path`` is a directory.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".pt", ".bin", ".safetensors"):
        raise InputError(f"{path} has to end in .pth, .pt, .bin or .safetensors.")
    if path.is_dir():
        raise InputError(f"{path} is a directory; the path of a file is needed.")
    if path.suffix == ".safetensors":
        metadata = {"format": "pt"}
        if description is not None:
            metadata[KEY] = json.dumps(description)
        content = save({k: v.contiguous() for k, v in state.items()}, metadata)
        atomic_write(path, lambda file: file.write(content))
    else:
        content = {"model": dict(state)}
        if description is not None:
            content[KEY] = dict(description)
        atomic_write(path, lambda file: torch.save(content, file))


def write_hf(
    state: Mapping[str, Tensor],
    path: str | os.PathLike,
    num_heads: int = 8,
    key_temperature: float = 20.0,
    dilation: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a directory that ``DabDetrForObjectDetection.from_pretrained`` loads.

    Args:
        state: tensors by this project's names, with a ResNet as the backbone.
        path: the directory; an existing one is replaced as a whole.
        num_heads, key_temperature: settings that the tensors do not show.
        dilation: the ResNet's last stage is dilated (DC5); transformers uses timm's ResNet then.
        settings: further known settings, see :func:`require_settings`.

    Raises:
        InputError: for what transformers' model cannot express.
    """
    layout = HF_TIMM if dilation else HF
    require_settings(layout, settings or {})
    config = _hf_config(state, num_heads, key_temperature, dilation)
    named = from_dab_detr(state, layout)
    tensors = {k: v.contiguous() for k, v in named.items()}
    path = Path(path)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.absolute().parent))
    try:
        save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        unfinished.chmod(0o755)
        _put_in_place(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; the old content is deleted only after that has worked."""
    if not path.exists():
        new.rename(path)
        return
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{path} is a directory without config.json and is not replaced.")
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.absolute().parent))
    path.rename(old / path.name)
    try:
        new.rename(path)
    except BaseException:
        (old / path.name).rename(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _hf_config(
    state: Mapping[str, Tensor], num_heads: int, key_temperature: float, dilation: bool
) -> dict:
    sizes = architecture(state)
    for name, needed in (
        ("share_box_head", True),
        ("modulate_hw_attention", True),
        ("query_dim", 4),
    ):
        if sizes[name] != needed:
            raise InputError(f"transformers' DAB-DETR needs {name}={needed}, not {sizes[name]}.")
    # transformers needs whole numbers
    temperature = int(key_temperature)
    if temperature != key_temperature:
        raise InputError(f"transformers' DAB-DETR takes whole temperatures, not {key_temperature}.")
    labels = {str(i): f"LABEL_{i}" for i in range(len(state[CLASS_WEIGHT]))}
    return {
        "architectures": ["DabDetrForObjectDetection"],
        "model_type": "dab-detr",
        **(_timm_resnet(state) if dilation else _transformers_resnet(state)),
        "use_pretrained_backbone": False,
        "hidden_size": sizes["d_model"],
        "encoder_layers": sizes["num_encoder_layers"],
        "decoder_layers": sizes["num_decoder_layers"],
        "encoder_ffn_dim": sizes["ffn_dim"],
        "decoder_ffn_dim": sizes["ffn_dim"],
        "encoder_attention_heads": num_heads,
        "decoder_attention_heads": num_heads,
        "num_queries": sizes["num_queries"],
        "num_patterns": sizes["num_patterns"],
        "query_dim": 4,
        "temperature_height": temperature,
        "temperature_width": temperature,
        "dropout": 0.0,
        "id2label": labels,
        "label2id": {name: int(i) for i, name in labels.items()},
    }


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Number of blocks in each stage of the ResNet."""
    stages = [
        [name for name in state if name.startswith(f"backbone.res{i}.") and ".conv" in name]
        for i in range(2, 6)
    ]
    if not all(stages):
        raise InputError("transformers' DAB-DETR takes a ResNet of four stages as its backbone.")
    return tuple(1 + max(int(name.split(".")[2]) for name in names) for names in stages)


def _transformers_resnet(state: Mapping[str, Tensor]) -> dict:
    depths = _depths(state)
    return {
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": len(state["backbone.stem.conv1.weight"]),
            "hidden_sizes": [len(state[f"backbone.res{i}.0.conv3.weight"]) for i in range(2, 6)],
            "depths": list(depths),
            "layer_type": "bottleneck",
            "out_features": ["stage4"],
        },
        "backbone": None,
        "use_timm_backbone": False,
    }


def _timm_resnet(state: Mapping[str, Tensor]) -> dict:
    depths = _depths(state)
    width = len(state["backbone.res5.0.conv3.weight"])
    if depths not in RESNET_DEPTHS or width != 2048:
        raise InputError(
            "transformers supports dilation (DC5) only for timm's ResNets; the checkpoint's, with "
            f"{depths} blocks and {width} channels, is not one of them."
        )
    return {
        "backbone_config": None,
        "backbone": f"resnet{RESNET_DEPTHS[depths]}",
        "use_timm_backbone": True,
        "dilation": True,
    }
