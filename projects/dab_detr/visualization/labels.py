"""Draws class names with matplotlib as plain text, in fonts that have their characters."""

import functools
import logging
import unicodedata
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from dab_detr.errors import listed

_INVISIBLE = ("Cc", "Cf", "Zs")
# a noncharacter of Unicode, which no font should have
_NO_LETTER = "\ufdd0"

logger = logging.getLogger(__name__)


class LabelVisualizer(Visualizer):
    """Detectron2's visualizer with class names as plain text, in fonts with their characters.

    Args:
        image, scale, instance_mode: as for :class:`detectron2.utils.visualizer.Visualizer`.
        metadata: with ``thing_classes``. A name with characters that no font has is drawn as
            "class" and its index.
    """

    def __init__(
        self,
        image: np.ndarray,
        metadata: Metadata,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
    ):
        names, fallbacks = _fonts(tuple(metadata.get("thing_classes") or ()))
        self.class_names = list(names)
        self._families = ["sans-serif", *fallbacks]
        drawn = Metadata().set(thing_classes=self.class_names)
        if metadata.get("thing_colors"):
            drawn.set(thing_colors=metadata.thing_colors)
        super().__init__(image, drawn, scale, instance_mode)

    def draw_text(self, *args: Any, **kwargs: Any) -> VisImage:
        output = super().draw_text(*args, **kwargs)
        text = output.ax.texts[-1]
        text.set_fontfamily(self._families)
        text.set_parse_math(False)
        return output


@functools.lru_cache(maxsize=32)
def _fonts(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names to draw, and font families for characters that the default font lacks."""
    usual = font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))
    # spaces, control characters and joiners are not drawn
    lacking = {x for name in names for x in name if unicodedata.category(x) not in _INVISIBLE}
    lacking -= _letters(usual)
    families: dict[str, str] = {}
    for font in font_manager.fontManager.ttflist if lacking else ():
        letters = _letters(font.fname)
        # a last-resort font draws a frame for every character
        if _NO_LETTER in letters or font.name in families.values():
            continue
        for letter in lacking & letters:
            families.setdefault(letter, font.name)
    drawn = []
    without_font = []
    for index, name in enumerate(names):
        if any(letter in lacking and letter not in families for letter in name):
            without_font.append(name)
            name = f"class {index}"
        drawn.append(name)
    if without_font:
        logger.warning(
            "No installed font has all characters of these class names; pictures show the class's "
            f"index instead: {listed(without_font)}."
        )
    return tuple(drawn), tuple(dict.fromkeys(families.values()))


@functools.cache
def _letters(path: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    # a damaged font file has none
    except (OSError, RuntimeError):
        return frozenset()
