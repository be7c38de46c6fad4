"""A small generated detection data set: coloured shapes on a noisy background.

It has PNG files and COCO annotations, so that it is read and trained on exactly like COCO. The same
settings give the same bytes on every machine: they only use integers, IEEE additions,
multiplications and divisions, a random generator whose stream numpy keeps fixed, and PNG files
without compression, whose bytes do not depend on a library's version.
"""

import binascii
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from dab_detr.data.coco import coco_records, read_coco

# Increased whenever the drawing changes, so that folders of an older version are not reused.
_VERSION = 1


def _triangle(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.abs(x) <= (y + 1) / 2


def _cross(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.minimum(np.abs(x), np.abs(y)) <= 1 / 3


# Each takes coordinates in -1..1 of the object's box and returns which points are in the object.
_SHAPES = {
    "rectangle": lambda y, x: np.ones(np.broadcast(y, x).shape, bool),
    "ellipse": lambda y, x: y * y + x * x <= 1,
    "triangle": _triangle,
    "diamond": lambda y, x: np.abs(y) + np.abs(x) <= 1,
    "cross": _cross,
    "ring": lambda y, x: (y * y + x * x <= 1) & (y * y + x * x >= 0.3),
}
CLASSES = tuple(_SHAPES)
# colours of the boxes in visualizations, RGB
_BOX_COLORS = [
    (255, 255, 0), (0, 255, 255), (255, 80, 255), (255, 140, 0), (80, 255, 80), (255, 60, 60),
]  # fmt: skip


@dataclass(frozen=True)
class ShapesSpec:
    """Settings of the data set.

    Attributes:
        num_train, num_val: number of images for training and validation.
        size: height and width of the images in pixels, at least 32.
        classes: names out of ``CLASSES``.
        max_objects: each image has 1 to max_objects objects.
        seed: 0 .. 2**32 - 1.

    Raises:
        ValueError: for a value out of its range.
    """

    num_train: int = 2000
    num_val: int = 200
    size: int = 96
    classes: tuple[str, ...] = ("rectangle", "ellipse", "triangle")
    max_objects: int = 6
    seed: int = 0

    def __post_init__(self):
        unknown = [name for name in self.classes if name not in _SHAPES]
        if unknown or not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"classes are {list(self.classes)}; choose different ones of {', '.join(CLASSES)}."
            )
        for name, least in (("num_train", 1), ("num_val", 1), ("size", 32), ("max_objects", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least {least}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it has to be in 0..{2**32 - 1}.")

    @property
    def folder_name(self) -> str:
        """A name that differs whenever the content does."""
        settings = json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True)
        return f"shapes-{self.size}px-{hashlib.sha256(settings.encode()).hexdigest()[:10]}"


def generate_shapes(root: str | os.PathLike, spec: ShapesSpec = ShapesSpec()) -> Path:
    """Write the data set below ``root`` unless it exists.

    It is written to a temporary folder, which is renamed when it is complete: an interrupted run
    leaves no incomplete data set.

    Returns:
        The folder, with ``train/``, ``val/`` with PNG files and ``train.json``, ``val.json``.
    """
    folder = Path(root) / spec.folder_name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for part, count in enumerate((spec.num_train, spec.num_val)):
            name = ("train", "val")[part]
            (unfinished / name).mkdir()
            annotations = _draw_part(unfinished / name, spec, part, count)
            (unfinished / f"{name}.json").write_text(json.dumps(annotations))
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            # Another process was faster and wrote the same files.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def register_shapes(prefix: str = "shapes", spec: ShapesSpec = ShapesSpec()) -> None:
    """Register ``<prefix>_train`` and ``<prefix>_val``; the files are written at the first use.

    They are below ``$DETECTRON2_DATASETS`` (default ``./datasets``), like Detectron2's own.
    """
    for part in ("train", "val"):
        name = f"{prefix}_{part}"
        DatasetCatalog.register(name, lambda name=name, part=part: _load(name, part, spec))
        MetadataCatalog.get(name).set(
            thing_classes=list(spec.classes),
            thing_colors=[_BOX_COLORS[CLASSES.index(name)] for name in spec.classes],
            # the ids in the files
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(spec.classes))},
            evaluator_type="coco",
        )


def _load(name: str, part: str, spec: ShapesSpec) -> list[dict]:
    folder = generate_shapes(os.getenv("DETECTRON2_DATASETS", "datasets"), spec)
    json_file, image_root = str(folder / f"{part}.json"), str(folder / part)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root)
    return coco_records(read_coco(json_file), image_root)


def _draw_part(folder: Path, spec: ShapesSpec, part: int, count: int) -> dict:
    """Draw the images of one part; returns its COCO annotations."""
    images, annotations = [], []
    for index in range(count):
        random = np.random.RandomState([spec.seed, part, index])
        pixels, objects = _draw_image(random, spec)
        file_name = f"{index:06d}.png"
        (folder / file_name).write_bytes(_png(pixels))
        images.append(
            {"id": index, "file_name": file_name, "height": spec.size, "width": spec.size}
        )
        for label, (x, y, width, height), area in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": label + 1,
                    "bbox": [x, y, width, height],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(spec.classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _draw_image(random: np.random.RandomState, spec: ShapesSpec) -> tuple[np.ndarray, list]:
    """One image ``(size, size, 3)`` uint8 and its objects: (label, xywh box, visible pixels)."""
    size = spec.size
    # background: a colour with a slight horizontal and vertical gradient
    background = random.randint(40, 216, 3)
    slopes = random.randint(-30, 31, (2, 3))
    steps = np.arange(size)
    image = background + slopes[0] * steps[:, None, None] // size
    image = image + slopes[1] * steps[None, :, None] // size
    owner = np.full((size, size), -1)
    objects = []
    for _ in range(random.randint(1, spec.max_objects + 1)):
        placed = _place(random, spec, owner, objects)
        if placed is None:
            continue
        label, (x, y, width, height), mask = placed
        color = _distinct_color(random, below=image[y + height // 2, x + width // 2])
        window = (slice(y, y + height), slice(x, x + width))
        owner[window][mask] = len(objects)
        image[window][mask] = color
        objects.append((label, (x, y, width, height)))
    # the sum of two uniform numbers has most values around zero
    noise = random.randint(-14, 15, image.shape) + random.randint(-14, 15, image.shape)
    pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
    visible = np.bincount(owner[owner >= 0], minlength=len(objects))
    return pixels, [(*item, int(area)) for item, area in zip(objects, visible)]


def _place(random: np.random.RandomState, spec: ShapesSpec, owner: np.ndarray, objects: list):
    """Place an object that hides at most half of each earlier one; None if that fails."""
    sides = [max(8, spec.size * part // 100) for part in (10, 60)]
    for _ in range(10):
        label = random.randint(len(spec.classes))
        width, height = _side(random, *sides), _side(random, *sides)
        x = random.randint(0, spec.size - width + 1)
        y = random.randint(0, spec.size - height + 1)
        rows = (2 * np.arange(height) + 1 - height)[:, None] / height
        columns = (2 * np.arange(width) + 1 - width)[None, :] / width
        mask = _SHAPES[spec.classes[label]](rows, columns)
        # a tip can be thinner than a pixel: the box is that of the visible pixels
        top, bottom = np.flatnonzero(mask.any(1))[[0, -1]]
        left, right = np.flatnonzero(mask.any(0))[[0, -1]]
        mask = mask[top : bottom + 1, left : right + 1]
        height, width = mask.shape
        y, x = int(y + top), int(x + left)
        below = owner[y : y + height, x : x + width][mask]
        hidden = np.bincount(below[below >= 0], minlength=len(objects))
        visible = np.bincount(owner[owner >= 0], minlength=len(objects))
        if (2 * hidden <= visible).all():
            return label, (x, y, width, height), mask
    return None


def _side(random: np.random.RandomState, least: int, most: int) -> int:
    """A length, small more often than large: the minimum of two uniform numbers."""
    return int(random.randint(least, most + 1, 2).min())


def _distinct_color(random: np.random.RandomState, below: np.ndarray) -> np.ndarray:
    """A colour that differs from what it covers, if only slightly."""
    while True:
        color = random.randint(0, 256, 3)
        if np.abs(color - below).sum() >= 120:
            return color


def _png(pixels: np.ndarray) -> bytes:
    """An RGB image as PNG with stored (not compressed) data.

    The output of compressors depends on their version; stored blocks do not.
    """
    height, width, _ = pixels.shape
    # each row starts with its filter type, 0
    raw = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0))).tobytes()
    blocks = [raw[i : i + 65535] for i in range(0, len(raw), 65535)]
    stored = b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block
        for block in blocks
    )
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", binascii.crc32(kind + body))
        for kind, body in chunks
    )


register_shapes()
