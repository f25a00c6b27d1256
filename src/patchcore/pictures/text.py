"""Text on pictures: colours, fonts, lines that fit, and short numbers."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from contextlib import suppress
from functools import lru_cache
from typing import cast

from PIL import ImageFont

Colour = tuple[int, int, int]  # RGB in [0, 255]

BACKGROUND: Colour = (22, 24, 28)
SURFACE: Colour = (40, 43, 50)
TEXT: Colour = (236, 238, 242)
MUTED: Colour = (158, 164, 174)

_SYSTEM_FONTS = ("DejaVuSans.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "Arial Unicode.ttf")


@lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow: the same on every machine, but with little beyond ASCII."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))  # of no other type if a size is given


def fit_text(text: str, size: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return the text, its middle replaced by an ellipsis if it is wider than `width` px, and its font."""
    text, font = _make_legible(text, size)
    if font.getlength(text) <= width:
        return text, font
    # The most characters that fit.
    kept = bisect_right(range(1, len(text)), float(width), key=lambda kept: font.getlength(_shorten(text, kept)))
    return _shorten(text, kept), font


def fit_lines(text: str, size: int, width: int, most: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Return the text on at most `most` lines of `width` px, each with its font and shortened as `fit_text` does.

    Lines end at line breaks; while there is room for another line, one that is too wide also ends at the last space
    that lets it fit.
    """
    lines = text.split("\n", most - 1)
    while len(lines) < most:
        line, font = _make_legible(lines[-1], size)
        spaces = [at for at, character in enumerate(line) if character == " " and font.getlength(line[:at]) <= width]
        if font.getlength(line) <= width or not spaces:
            break
        lines[-1:] = lines[-1][: spaces[-1]], lines[-1][spaces[-1] + 1 :]
    return [fit_text(line, size, width) for line in lines]


def format_number(value: float) -> str:
    """Write three significant digits, all digits of thousands, and powers of ten as in 1.5e-7."""
    if value == 0 or 1e-3 <= abs(value) < 9999.5:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _make_legible(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return the text on one printable line, and the font that can draw most of it: Pillow's own or a system font.

    Letters that this font lacks lose their accents; what is then still unknown becomes a box.
    """
    text = "".join(character if character.isprintable() else "?" for character in text)
    if text.isascii():
        return text, load_font(size)
    font = min((load_font(size), *_load_system_fonts(size)), key=lambda font: len(_find_missing(font, text)))
    missing = _find_missing(font, text)
    # The compatibility decomposition begins with the bare letter.
    return "".join(unicodedata.normalize("NFKD", c)[0] if c in missing else c for c in text), font


@lru_cache(maxsize=32)
def _load_system_fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    fonts = []
    for name in _SYSTEM_FONTS:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size, layout_engine=ImageFont.Layout.BASIC))
    return tuple(fonts)


def _find_missing(font: ImageFont.FreeTypeFont, text: str) -> set[str]:
    """Return the characters that the font has no glyph for, so that it draws a box."""
    box = bytes(font.getmask("\U0010ffff"))
    return {character for character in set(text) if not character.isascii() and bytes(font.getmask(character)) == box}


def _shorten(text: str, kept: int) -> str:
    return text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]
