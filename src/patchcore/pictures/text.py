"""Colours and text of pictures, and checks of what is drawn."""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

Colour = tuple[int, int, int]


BACKGROUND: Colour = (22, 24, 28)


SURFACE: Colour = (40, 43, 50)


TEXT: Colour = (236, 238, 242)


MUTED: Colour = (158, 164, 174)


_FONTS_OF_THE_SYSTEM = ("DejaVuSans.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "Arial Unicode.ttf")


def _check_finite(name: str, values: NDArray[np.floating]) -> None:
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise ValueError(f"{name} must be finite, got nan or infinity in {wrong} of {values.size} values")


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow: the same on every machine, but little beyond ASCII."""
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=32)
def _fonts_of_the_system(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    fonts = []
    for name in _FONTS_OF_THE_SYSTEM:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC))
    return tuple(fonts)


def _missing(font: ImageFont.FreeTypeFont, text: str) -> set[str]:
    """The characters that the font has no glyph for, so that it draws a box."""
    box = bytes(font.getmask("\U0010ffff"))
    return {character for character in set(text) if not character.isascii() and bytes(font.getmask(character)) == box}


def _legible(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text on one printable line, and the font that can draw most of it: Pillow's own or one of the system.

    Letters that this font lacks lose their accents; what then is still unknown becomes a box.
    """
    text = "".join(character if character.isprintable() else "?" for character in text)
    if text.isascii():
        return text, _font(size)
    font = min((_font(size), *_fonts_of_the_system(size)), key=lambda font: len(_missing(font, text)))
    missing = _missing(font, text)
    # The compatibility decomposition begins with the bare letter.
    return "".join(unicodedata.normalize("NFKD", c)[0] if c in missing else c for c in text), font


def _fit(text: str, size: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text, its middle replaced by an ellipsis where it is wider than `width` px, and its font."""
    text, font = _legible(text, size)
    if font.getlength(text) <= width:
        return text, font
    least, most = 0, len(text) - 1
    while least < most:  # the most characters that fit
        kept = (least + most + 1) // 2
        if font.getlength(_shorten(text, kept)) <= width:
            least = kept
        else:
            most = kept - 1
    return _shorten(text, least), font


def _shorten(text: str, kept: int) -> str:
    return text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]


def _short(value: float) -> str:
    """Three significant digits, all digits of thousands, powers of ten as in 1.5e-7."""
    if value == 0 or 1e-3 <= abs(value) < 9999.5:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
