"""Draw the verdict on an image: a badge that says it, and where the image is anomalous."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from patchcore.pictures.heat import HeatScale
from patchcore.pictures.panels import OUTLINE, draw_colour_bar, draw_outline, enlarge, paste_heat
from patchcore.pictures.text import BACKGROUND, MUTED, SURFACE, TEXT, Colour, fit_text, load_font

_MIN_PANEL = 300  # px of the longer side; below it a region is hard to see
_UNIT_COLUMN = 360  # px; text and margins grow with columns wider than this
_SAMPLES = 4  # along each side of a pixel of the badge


@dataclass(frozen=True)
class _Badge:
    """Words, sign and outline all say the same, and so do light on dark and dark on light: none needs colour vision."""

    word: str
    ground: Colour
    ink: Colour
    corners: str  # round, cut or square
    sign: tuple[tuple[tuple[float, float], ...], ...]  # strokes in a square of side 1


ACCEPT = _Badge("ACCEPT", (64, 200, 128), (6, 32, 18), "round", (((0.04, 0.54), (0.36, 0.86), (0.96, 0.16)),))
REJECT = _Badge("REJECT", (196, 30, 44), (255, 255, 255), "cut", (((0.1, 0.1), (0.9, 0.9)), ((0.1, 0.9), (0.9, 0.1))))
NO_VERDICT = _Badge("NO VERDICT", (92, 98, 108), (255, 255, 255), "square", (((0.08, 0.5), (0.92, 0.5)),))


def draw_verdict(
    picture: Image.Image,
    anomaly_map: NDArray[np.floating],
    *,
    scale: HeatScale,
    regions: NDArray[np.integer] | NDArray[np.bool_],
    accepted: bool | None,
    heading: str,
    caption: str,
) -> Image.Image:
    """Draw image and heat map side by side, the anomalous regions outlined in both, under a badge with the verdict.

    Maps whose longer side is below 300 px are enlarged by a whole factor.

    Args:
        picture: what the detector saw (the same crop), of any size; shown at the size of the enlarged map.
        anomaly_map: (H, W) float, the higher the more anomalous; finite.
        scale: of the colours of the heat map.
        regions: (H, W), not zero in the anomalous regions, as `regions.connected_regions` labels them.
        accepted: the verdict; None where there is none.
        heading: the name of the image; shortened in its middle if it is too long.
        caption: score, threshold and what else led to the verdict; shortened as well.

    Returns:
        RGB image.

    Raises:
        ValueError: map and regions differ in shape, or the map holds nan or infinity.
    """
    levels = scale.levels(anomaly_map)
    marked = np.asarray(regions) != 0
    if marked.shape != levels.shape:
        raise ValueError(f"the regions have shape {marked.shape}, expected {levels.shape}, that of the anomaly map")
    layout = _Layout(*levels.shape)
    sheet = Image.new("RGB", layout.size, BACKGROUND)
    _draw_header(sheet, layout, accepted, heading, caption)

    picture = picture.convert("RGB")
    if picture.size != (layout.width, layout.height):
        picture = picture.resize((layout.width, layout.height), Image.Resampling.BICUBIC)
    marked = enlarge(marked, layout.factor)
    for left in layout.columns:
        sheet.paste(SURFACE, (left, layout.top, left + layout.column, layout.top + layout.height))
    sheet.paste(picture, layout.corners[0])
    paste_heat(sheet, layout.corners[1], picture, enlarge(levels, layout.factor))
    for corner in layout.corners:
        draw_outline(sheet, corner, marked, OUTLINE, layout.line)

    middle = layout.top + layout.height + layout.bottom // 2
    _draw_legend(sheet, layout, middle, has_regions=bool(marked.any()))
    left = layout.columns[1]
    draw_colour_bar(sheet, "heat map", scale, left=left, right=left + layout.column, middle=middle, unit=layout.unit)
    return sheet


def unit_of(sheet: Image.Image) -> float:
    """How much larger than usual text and margins are on the sheet of a verdict."""
    return max(1.0, sheet.width / (2 * _UNIT_COLUMN + 3 * _Layout.MARGIN))


class _Layout:
    """Where things lie on the sheet of an (H, W) map, in px: two columns that are as wide as the panels or wider."""

    MARGIN = 12  # px at a unit of 1

    def __init__(self, map_height: int, map_width: int) -> None:
        self.factor = math.ceil(_MIN_PANEL / max(map_height, map_width))  # pixels of the sheet along one of the map
        self.width, self.height = map_width * self.factor, map_height * self.factor  # of a panel
        self.column = max(self.width, _MIN_PANEL)
        self.unit = max(1.0, self.column / _UNIT_COLUMN)
        self.margin = round(self.MARGIN * self.unit)
        self.line = math.ceil(2 * self.unit)  # width of the outlines
        self.top = round(66 * self.unit)  # height of the strip of the verdict
        self.bottom = round(32 * self.unit)  # height of the strip of the captions and the colour bar
        self.size = 3 * self.margin + 2 * self.column, self.top + self.height + self.bottom
        self.columns = [self.margin, 2 * self.margin + self.column]
        self.corners = [(left + (self.column - self.width) // 2, self.top) for left in self.columns]


def _draw_header(sheet: Image.Image, layout: _Layout, accepted: bool | None, heading: str, caption: str) -> None:
    badge = _draw_badge(accepted, layout.unit)
    middle = layout.top // 2
    sheet.paste(badge, (layout.margin, middle - badge.height // 2), badge)
    left = layout.margin + badge.width + round(14 * layout.unit)
    draw = ImageDraw.Draw(sheet)
    for line, size, colour, y in ((heading, 16, TEXT, -11), (caption, 13, MUTED, 12)):
        text, font = fit_text(line, round(size * layout.unit), sheet.width - layout.margin - left)
        draw.text((left, middle + round(y * layout.unit)), text, font=font, fill=colour, anchor="lm")


@lru_cache(maxsize=8)
def _draw_badge(accepted: bool | None, unit: float) -> Image.Image:
    """Draw the badge as RGBA, smoothed by taking several samples a pixel; paste it, but do not draw on it."""
    badge = NO_VERDICT if accepted is None else ACCEPT if accepted else REJECT
    scale = _SAMPLES * unit
    height, side, pad = round(42 * scale), round(17 * scale), round(15 * scale)
    font, bold = load_font(round(20 * scale)), round(0.5 * scale)
    text_left = pad + side + round(10 * scale)
    width = text_left + math.ceil(font.getlength(badge.word)) + 2 * bold + pad
    drawn = Image.new("RGBA", (width, height), (*badge.ground, 0))
    draw = ImageDraw.Draw(drawn)
    right, bottom, cut = width - 1, height - 1, round(11 * scale)
    if badge.corners == "round":
        draw.rounded_rectangle((0, 0, right, bottom), radius=height // 2, fill=badge.ground)
    elif badge.corners == "cut":
        x, y = (0, cut, right - cut, right), (0, cut, bottom - cut, bottom)
        corners = [(1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1)]
        draw.polygon([(x[i], y[j]) for i, j in corners], fill=badge.ground)
    else:
        draw.rectangle((0, 0, right, bottom), fill=badge.ground)
    stroke = round(3.6 * scale)
    for strokes in badge.sign:
        points = [(pad + x * side, (height - side) / 2 + y * side) for x, y in strokes]
        draw.line(points, fill=badge.ink, width=stroke, joint="curve")
        for end in points:  # make it round
            draw.ellipse([each + sign * stroke / 2 for sign in (-1, 1) for each in end], fill=badge.ink)
    draw.text((text_left, height // 2), badge.word, font=font, fill=badge.ink, anchor="lm", stroke_width=bold)
    return drawn.resize((round(width / _SAMPLES), round(height / _SAMPLES)), Image.Resampling.BOX)


def _draw_legend(sheet: Image.Image, layout: _Layout, middle: int, *, has_regions: bool) -> None:
    """Write below the image what the outlines are, or that there are none."""
    draw, font = ImageDraw.Draw(sheet), load_font(round(12 * layout.unit))
    left, space = layout.columns[0], round(8 * layout.unit)
    draw.text((left, middle), "image", font=font, fill=MUTED, anchor="lm")
    left += math.ceil(font.getlength("image")) + 2 * space
    if has_regions:
        top = middle - space // 2
        draw.rectangle((left, top, left + space, top + space), outline=OUTLINE, width=layout.line)
        left += 2 * space
    text = "anomalous region" if has_regions else "no anomalous region"
    draw.text((left, middle), text, font=font, fill=MUTED, anchor="lm")
