"""Draw image, ground truth and heat map side by side, and read them back.

The PNG file of an overlay carries its title, both scores and the boxes of the three panels as text (iTXt), so that
nobody has to parse its name or find the panels among its pixels.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, UnidentifiedImageError

from patchcore.pictures import png
from patchcore.pictures.heat import HeatScale
from patchcore.pictures.panels import OUTLINE, draw_colour_bar, enlarge, paste_colour, paste_heat, trace_outline
from patchcore.pictures.text import BACKGROUND, MUTED, SURFACE, TEXT, fit_text, load_font

_MIN_PANEL = 192  # px; below it neither title nor captions fit

# Keywords of the text in a file. Boxes are "left,top,right,bottom" in px, with spaces between the panels.
_TITLE, _SCORE, _RAW_SCORE, _PANELS = "Title", "Score", "Raw score", "Panels"

# What Pillow's decoder raises on damaged files, beside its own error.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What the file of an overlay holds.

    Attributes:
        title: the name of the image.
        score: normalised over the test set, the higher the more anomalous.
        raw_score: as the detector gave it, the higher the more anomalous.
        image: RGB, what the detector saw.
        mask: RGB, white on defects; a caption if there is no ground truth.
        heat_map: RGB, the heat over the image in grey.
    """

    title: str
    score: float
    raw_score: float
    image: Image.Image
    mask: Image.Image
    heat_map: Image.Image


def draw_overlay(
    picture: Image.Image,
    mask: NDArray[np.bool_] | None,
    anomaly_map: NDArray[np.floating],
    *,
    scale: HeatScale,
    heading: str,
) -> Image.Image:
    """Draw image, ground truth and heat map side by side under a heading.

    The heat map lies over the grey-scale image, with the outline of the mask; its colour bar shows the scale's
    two ends. Maps narrower than 192 px are enlarged by a whole factor, so that the text fits.

    Args:
        picture: what the detector saw (the same crop), of any size; shown at the size of the map.
        mask: (H, W) bool, True on defects; all False for a good image, None if there is no ground truth.
        anomaly_map: (H, W) float, the higher the more anomalous; finite.
        scale: one per category, from `HeatScale.of`.
        heading: name and scores; shortened in its middle if it is too long.

    Returns:
        RGB image.

    Raises:
        ValueError: map and mask differ in shape, or the map holds nan or infinity.
    """
    levels = scale.levels(anomaly_map)
    if mask is not None and np.shape(mask) != levels.shape:
        raise ValueError(f"the mask has shape {np.shape(mask)}, expected {levels.shape}, that of the anomaly map")
    layout = _Layout(*levels.shape)
    sheet = _draw_frame(*levels.shape, scale, mask is not None).copy()

    picture = picture.convert("RGB")
    if picture.size != (layout.width, layout.height):
        picture = picture.resize((layout.width, layout.height), Image.Resampling.BICUBIC)
    sheet.paste(picture, layout.corners[0])
    paste_heat(sheet, layout.corners[2], picture, enlarge(levels, layout.factor))
    if mask is not None:
        mask = enlarge(np.asarray(mask, dtype=bool), layout.factor)
        sheet.paste(Image.fromarray(mask * np.uint8(255)), layout.corners[1])
        paste_colour(sheet, layout.corners[2], trace_outline(mask), OUTLINE)
    text, font = fit_text(heading, layout.heading_size, sheet.width - 2 * layout.margin)
    ImageDraw.Draw(sheet).text((layout.margin, layout.top // 2), text, font=font, fill=TEXT, anchor="lm")
    return sheet


def save_overlay(
    path: Path,
    picture: Image.Image,
    mask: NDArray[np.bool_] | None,
    anomaly_map: NDArray[np.floating],
    *,
    scale: HeatScale,
    title: str,
    score: float,
    raw_score: float,
) -> None:
    """Draw an overlay under its title and scores, and write it as a PNG file that carries them as text.

    Args:
        path: the file, in an existing folder.
        picture, mask, anomaly_map, scale: see `draw_overlay`.
        title, score, raw_score: see `Overlay`.
    """
    heading = f"{title}   score {score:.3f} (raw {raw_score:.4g})"
    sheet = draw_overlay(picture, mask, anomaly_map, scale=scale, heading=heading)
    boxes = _Layout(*np.shape(anomaly_map)).boxes
    text = {
        _TITLE: title,
        _SCORE: repr(float(score)),
        _RAW_SCORE: repr(float(raw_score)),
        _PANELS: " ".join(",".join(map(str, box)) for box in boxes),
    }
    path.write_bytes(png.encode(sheet, text))


def read_overlay(path: Path) -> Overlay:
    """Read what `save_overlay` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no overlay; the message names it, in one line.
    """
    try:
        with Image.open(path, formats=["PNG"]) as sheet:
            if missing := [name for name in (_TITLE, _SCORE, _RAW_SCORE, _PANELS) if name not in sheet.info]:
                raise ValueError(f"its PNG text lacks {', '.join(missing)}; write it again with this version")
            image, mask, heat_map = (_cut_panel(sheet, box) for box in sheet.info[_PANELS].split())
            return Overlay(
                title=str(sheet.info[_TITLE]),
                score=float(sheet.info[_SCORE]),
                raw_score=float(sheet.info[_RAW_SCORE]),
                image=image,
                mask=mask,
                heat_map=heat_map,
            )
    except FileNotFoundError:
        raise
    except _DECODING_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnidentifiedImageError):  # its text repeats the path
            reason = "its content is no PNG"
        raise ValueError(f"{path}: cannot read the overlay: {' '.join(reason.split())}") from error


def _cut_panel(sheet: Image.Image, box: str) -> Image.Image:
    left, top, right, bottom = map(int, box.split(","))
    if not (0 <= left < right <= sheet.width and 0 <= top < bottom <= sheet.height):
        raise ValueError(f"the panel {box} does not lie on a sheet of {sheet.width} x {sheet.height} px")
    return sheet.crop((left, top, right, bottom)).convert("RGB")


class _Layout:
    """Where things lie on the overlay of an (H, W) map, in px; text and margins grow with the panels."""

    def __init__(self, map_height: int, map_width: int) -> None:
        self.factor = math.ceil(_MIN_PANEL / map_width)  # pixels of the overlay along a pixel of the map
        self.width, self.height = map_width * self.factor, map_height * self.factor  # of a panel
        self.unit = max(1.0, self.width / 256)
        self.margin, self.gap = round(10 * self.unit), round(6 * self.unit)
        self.heading_size, self.caption_size = round(15 * self.unit), round(12 * self.unit)
        self.top = round(34 * self.unit)  # height of the strip of the heading
        self.bottom = round(28 * self.unit)  # height of the strip of the captions and the colour bar
        self.size = 2 * self.margin + 3 * self.width + 2 * self.gap, self.top + self.height + self.bottom
        self.corners = [(self.margin + panel * (self.width + self.gap), self.top) for panel in range(3)]
        self.boxes = [(x, y, x + self.width, y + self.height) for x, y in self.corners]


@lru_cache(maxsize=8)
def _draw_frame(map_height: int, map_width: int, scale: HeatScale, has_mask: bool) -> Image.Image:
    """Draw what the overlays of a category have in common; copy it before drawing on it."""
    layout = _Layout(map_height, map_width)
    sheet = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = load_font(layout.caption_size)
    middle = layout.top + layout.height + layout.bottom // 2
    for (left, _), caption in zip(layout.corners, ("image", "ground truth"), strict=False):
        draw.text((left, middle), caption, font=font, fill=MUTED, anchor="lm")
    if not has_mask:
        left, top = layout.corners[1]
        draw.rectangle((left, top, left + layout.width - 1, top + layout.height - 1), fill=SURFACE)
        centre = (left + layout.width // 2, top + layout.height // 2)
        draw.text(centre, "no mask", font=font, fill=MUTED, anchor="mm")
    left = layout.corners[2][0]
    draw_colour_bar(sheet, "heat map", scale, left=left, right=left + layout.width, middle=middle, unit=layout.unit)
    return sheet
