"""What the panels of overlays and verdicts have in common: heat over grey, outlines and the colour bar."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from patchcore.pictures.heat import HEAT_COLOURS, HeatScale
from patchcore.pictures.text import BACKGROUND, MUTED, Colour, format_number, load_font

# Cyan does not occur in the heat map, and nobody confuses it with orange.
OUTLINE: Colour = (60, 230, 255)

# Opacity of the heat over the part: normal places show the part, hot ones the colour.
_OPACITY = (255 * (0.45 + 0.45 * np.linspace(0, 1, 256))).round().astype(np.uint8)  # (256,)


def paste_heat(sheet: Image.Image, corner: tuple[int, int], picture: Image.Image, levels: NDArray[np.uint8]) -> None:
    """Paste the heat over the picture in grey onto an RGB sheet.

    Args:
        corner: left and top, where the panel lies.
        picture: of the size of `levels`.
        levels: (H, W), see `HeatScale.levels`.
    """
    sheet.paste(picture.convert("L"), corner)
    heat, opacity = HEAT_COLOURS.take(levels, axis=0), _OPACITY.take(levels)
    sheet.paste(Image.fromarray(heat), corner, Image.fromarray(opacity))


def paste_colour(sheet: Image.Image, corner: tuple[int, int], mask: NDArray[np.bool_], colour: Colour) -> None:
    """Paint the pixels of a mask, whose left top lies at the corner, onto an RGB sheet; what lies beside it is cut."""
    opacity = Image.fromarray(mask * np.uint8(255))
    sheet.paste(colour, (*corner, corner[0] + opacity.width, corner[1] + opacity.height), opacity)


def draw_outline(
    sheet: Image.Image, corner: tuple[int, int], mask: NDArray[np.bool_], colour: Colour, width: int
) -> None:
    """Draw a line of `width` px around the regions of a mask, outside of them.

    A dark edge around the line lets it stand out from light ground too. Where a region touches the border of the
    panel, the line is closed beyond it.
    """
    edge = max(1, width // 2)
    mask = np.pad(np.asarray(mask, dtype=bool), width + edge)
    line = grow(mask, width)
    left, top = corner[0] - width - edge, corner[1] - width - edge
    paste_colour(sheet, (left, top), trace_outline(line, edge), BACKGROUND)
    paste_colour(sheet, (left, top), line & ~mask, colour)


def draw_colour_bar(
    sheet: Image.Image,
    caption: str,
    scale: HeatScale,
    *,
    left: int,
    right: int,
    middle: int,
    unit: float,
) -> None:
    """Write the caption on the line `middle`, and beside it the heat colours between the two ends of the scale.

    The bar fills what the caption and the two numbers leave between `left` and `right`; if that is nothing, it is left
    out. At a unit of 1 the text is 12 px high, the bar 8 px, and the spaces are 6 px wide.
    """
    draw, font = ImageDraw.Draw(sheet), load_font(round(12 * unit))
    space, thickness = round(6 * unit), round(8 * unit)
    draw.text((left, middle), caption, font=font, fill=MUTED, anchor="lm")
    left += math.ceil(font.getlength(caption)) + 2 * space
    draw.text((left, middle), format_number(scale.low), font=font, fill=MUTED, anchor="lm")
    draw.text((right, middle), format_number(scale.high), font=font, fill=MUTED, anchor="rm")
    left += math.ceil(font.getlength(format_number(scale.low))) + space
    right -= math.ceil(font.getlength(format_number(scale.high))) + space
    if right > left:
        bar = Image.fromarray(HEAT_COLOURS[None]).resize((right - left, thickness), Image.Resampling.BILINEAR)
        sheet.paste(bar, (left, middle - thickness // 2))


def enlarge(pixels: NDArray, factor: int) -> NDArray:
    """(H, W) -> (H * factor, W * factor), every pixel a square."""
    return pixels if factor == 1 else pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def trace_outline(mask: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """Return the pixels next to the regions of the mask, outside of them, so that no pixel of a defect is hidden."""
    return grow(mask, width) & ~mask


def grow(mask: NDArray[np.bool_], steps: int) -> NDArray[np.bool_]:
    """Return the mask with all pixels that are reached from it in so many steps up, down, left or right."""
    for _ in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask
