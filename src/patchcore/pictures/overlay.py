"""Image, ground truth and heat map side by side: arrays and a font."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from patchcore.pictures.heat import _STEPS, HEAT_COLOURS, HeatScale, _levels
from patchcore.pictures.text import BACKGROUND, MUTED, SURFACE, TEXT, Colour, _fit, _font, _short

# Cyan occurs nowhere in the heat map, and nobody confuses it with orange.
OUTLINE: Colour = (60, 230, 255)


# Opacity of the heat over the part: normal places show the part, hot ones the colour.
_OPACITY = (255 * (0.45 + 0.45 * _STEPS)).round().astype(np.uint8)  # (256,)


_LEAST_PANEL = 192  # px; below it neither title nor captions fit


def overlay(
    picture: Image.Image,
    mask: NDArray[np.bool_] | None,
    anomaly_map: NDArray[np.floating],
    *,
    scale: HeatScale,
    title: str,
) -> Image.Image:
    """Image, ground truth and heat map side by side under a title.

    The heat map lies over the grey-scale image, with the outline of the mask; its colour bar shows the scale's
    two ends. Maps narrower than 192 px are enlarged by a whole factor, so that the text fits.

    Args:
        picture: what the detector saw (the same crop), of any size; shown at the size of the map.
        mask: (H, W) bool, True on defects; all False for a good image, None where there is no ground truth.
        anomaly_map: (H, W) float, the higher the more anomalous; finite.
        scale: one per category, from `HeatScale.of`.
        title: name and score; shortened in its middle where it is too long.

    Returns:
        RGB image.

    Raises:
        ValueError: where map and mask differ in shape, or the map holds nan or infinity.
    """
    levels = _levels(anomaly_map, scale)
    if mask is not None and np.shape(mask) != levels.shape:
        raise ValueError(f"the mask has shape {np.shape(mask)}, expected {levels.shape}, that of the anomaly map")
    height, width = levels.shape
    factor = math.ceil(_LEAST_PANEL / width)
    layout = _Layout(width=width * factor, height=height * factor)

    picture = picture.convert("RGB")
    if picture.size != (layout.width, layout.height):
        picture = picture.resize((layout.width, layout.height), Image.Resampling.BICUBIC)
    levels = _enlarge(levels, factor)
    heat, opacity = HEAT_COLOURS.take(levels, axis=0), _OPACITY.take(levels)

    sheet = _frame(layout, scale, mask is not None).copy()
    sheet.paste(picture, layout.corner(0))
    if mask is not None:
        mask = _enlarge(np.asarray(mask, dtype=bool), factor)
        sheet.paste(Image.fromarray(mask * np.uint8(255)), layout.corner(1))
        line = _outline(mask)
        heat[line], opacity[line] = OUTLINE, 255
    sheet.paste(picture.convert("L"), layout.corner(2))
    sheet.paste(Image.fromarray(heat), layout.corner(2), Image.fromarray(opacity))
    text, font = _fit(title, layout.title_size, sheet.width - 2 * layout.margin)
    ImageDraw.Draw(sheet).text((layout.margin, layout.top // 2), text, font=font, fill=TEXT, anchor="lm")
    return sheet


def panels(sheet: Image.Image) -> tuple[Image.Image, Image.Image, Image.Image]:
    """The image, the ground truth and the heat map out of an `overlay`.

    Raises:
        ValueError: the picture does not have the shape of one.
    """
    for width in range(sheet.width // 3, 0, -1):  # the layout follows from the width of a panel
        strips = _Layout(width=width, height=0)
        if strips.size[0] == sheet.width and sheet.height > strips.size[1]:
            height = sheet.height - strips.size[1]
            corners = [strips.corner(panel) for panel in range(3)]
            image, mask, heat = (sheet.crop((x, y, x + width, y + height)) for x, y in corners)
            return image, mask, heat
    raise ValueError(f"a picture of {sheet.width} x {sheet.height} px is no overlay")


@dataclass(frozen=True)
class _Layout:
    """Where things lie on an overlay, in px; text and margins grow with the panels (width x height each)."""

    width: int
    height: int

    @property
    def unit(self) -> float:
        return max(1.0, self.width / 256)

    @property
    def margin(self) -> int:
        return round(10 * self.unit)

    @property
    def gap(self) -> int:
        return round(6 * self.unit)

    @property
    def title_size(self) -> int:
        return round(15 * self.unit)

    @property
    def caption_size(self) -> int:
        return round(12 * self.unit)

    @property
    def top(self) -> int:
        """Height of the strip of the title."""
        return round(34 * self.unit)

    @property
    def bottom(self) -> int:
        """Height of the strip of the captions and the colour bar."""
        return round(28 * self.unit)

    @property
    def size(self) -> tuple[int, int]:
        return 2 * self.margin + 3 * self.width + 2 * self.gap, self.top + self.height + self.bottom

    def corner(self, panel: int) -> tuple[int, int]:
        return self.margin + panel * (self.width + self.gap), self.top


@lru_cache(maxsize=8)
def _frame(layout: _Layout, scale: HeatScale, has_mask: bool) -> Image.Image:
    """All that the overlays of a category have in common; to be copied, never drawn on."""
    sheet = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = _font(layout.caption_size)
    middle = layout.top + layout.height + layout.bottom // 2
    for panel, caption in enumerate(("image", "ground truth", "heat map")):
        draw.text((layout.corner(panel)[0], middle), caption, font=font, fill=MUTED, anchor="lm")
    if not has_mask:
        left, top = layout.corner(1)
        draw.rectangle((left, top, left + layout.width - 1, top + layout.height - 1), fill=SURFACE)
        centre = (left + layout.width // 2, top + layout.height // 2)
        draw.text(centre, "no mask", font=font, fill=MUTED, anchor="mm")

    # The colour bar fills what the caption and the two numbers leave of the strip below the heat map.
    space = layout.gap
    left = layout.corner(2)[0] + math.ceil(font.getlength("heat map")) + 2 * space
    right = layout.corner(2)[0] + layout.width
    draw.text((left, middle), _short(scale.low), font=font, fill=MUTED, anchor="lm")
    draw.text((right, middle), _short(scale.high), font=font, fill=MUTED, anchor="rm")
    left += math.ceil(font.getlength(_short(scale.low))) + space
    right -= math.ceil(font.getlength(_short(scale.high))) + space
    if right > left:
        thickness = round(8 * layout.unit)
        bar = Image.fromarray(HEAT_COLOURS[None]).resize((right - left, thickness), Image.Resampling.BILINEAR)
        sheet.paste(bar, (left, middle - thickness // 2))
    return sheet


def _enlarge(pixels: NDArray, factor: int) -> NDArray:
    """(H, W) -> (H * factor, W * factor), every pixel a square."""
    return pixels if factor == 1 else pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels next to the mask's regions, outside of them: no pixel of a defect is hidden."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown & ~mask
