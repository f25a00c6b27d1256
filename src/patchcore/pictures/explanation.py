"""Draw what a verdict rests on: the most anomalous places, and the good patches that come nearest to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from patchcore.pictures.panels import OUTLINE, draw_outline
from patchcore.pictures.text import BACKGROUND, MUTED, SURFACE, TEXT, Colour, fit_lines, fit_text
from patchcore.pictures.verdict import ACCEPT, unit_of

Box = tuple[int, int, int, int]  # left, top, right, bottom in px; right and bottom exclusive

MOST_MATCHES = 3
_LABEL_LINES = 3
_READABLE = 192  # px of the longer side of a crop


@dataclass(frozen=True, kw_only=True)
class Match:
    """A good patch: the training picture around it, where in it the patch lies, and up to three lines that name it."""

    crop: Image.Image
    box: Box
    label: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """An anomalous place: the test picture around it, as in `Match`, and the nearest good patches, nearest first."""

    crop: Image.Image
    box: Box
    label: str
    nearest: tuple[Match, ...]

    def __post_init__(self) -> None:
        if len(self.nearest) > MOST_MATCHES:
            raise ValueError(f"a place is shown with at most {MOST_MATCHES} good patches, got {len(self.nearest)}")


def cut_surroundings(picture: Image.Image, box: Box, size: int) -> tuple[Image.Image, Box]:
    """Cut a square window around a box out of a picture, and enlarge it to a readable size.

    The window is centred on the box; at the borders of the picture it is moved inwards, so that it shows nothing that
    the picture does not hold.

    Args:
        picture: of mode RGB.
        box: in pixels of the picture, within it.
        size: of the window in pixels of the picture; more if the box is larger, less if the picture is smaller.

    Returns:
        The crop, enlarged by a whole factor to at least 192 px along its longer side; and the box in it.

    Raises:
        ValueError: the box is empty or does not lie within the picture.
    """
    if not (0 <= box[0] < box[2] <= picture.width and 0 <= box[1] < box[3] <= picture.height):
        raise ValueError(f"expected a box within {picture.width} x {picture.height} px, got {box}")
    corner, sides = [], []
    for near, far, length in ((box[0], box[2], picture.width), (box[1], box[3], picture.height)):
        side = min(length, max(size, box[2] - box[0], box[3] - box[1]))
        sides.append(side)
        corner.append(min(max(0, (near + far - side) // 2), length - side))
    (x, y), (width, height) = corner, sides
    factor = math.ceil(_READABLE / max(sides))
    crop = picture.crop((x, y, x + width, y + height))
    if factor > 1:
        crop = crop.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    left, top, right, bottom = box
    return crop, ((left - x) * factor, (top - y) * factor, (right - x) * factor, (bottom - y) * factor)


def draw_explanation(verdict_sheet: Image.Image, evidence: Sequence[Place]) -> Image.Image:
    """Return the sheet of a verdict with a row below it for each place: the place, and beside it good patches.

    Args:
        verdict_sheet: from `draw_verdict`.
        evidence: at least one place, the most anomalous first.

    Returns:
        RGB image as wide as the sheet.

    Raises:
        ValueError: there is no place to show.
    """
    if not evidence:
        raise ValueError("expected at least one anomalous place to explain a verdict, got none")
    rows = _Rows(verdict_sheet)
    sheet = Image.new("RGB", (verdict_sheet.width, rows.top + rows.header + len(evidence) * rows.height), BACKGROUND)
    sheet.paste(verdict_sheet)
    rows.draw_header(sheet)
    for index, place in enumerate(evidence):
        rows.draw_crop(sheet, index, 0, place, OUTLINE)
        for column, match in enumerate(place.nearest, start=1):
            rows.draw_crop(sheet, index, column, match, ACCEPT.ground)
    return sheet


class _Rows:
    """Where the rows lie below the sheet of a verdict: a wide gap parts the places from the good patches."""

    def __init__(self, verdict_sheet: Image.Image) -> None:
        self.unit = unit_of(verdict_sheet)
        self.margin, self.gap, self.wide_gap = (round(px * self.unit) for px in (12, 10, 28))
        self.top = verdict_sheet.height
        self.header = round(40 * self.unit)
        self.text_size, self.line = round(12 * self.unit), round(17 * self.unit)
        gaps = 2 * self.margin + self.wide_gap + (MOST_MATCHES - 1) * self.gap
        self.cell = (verdict_sheet.width - gaps) // (1 + MOST_MATCHES)
        self.height = self.cell + round(5 * self.unit) + _LABEL_LINES * self.line + round(12 * self.unit)

    def left(self, column: int) -> int:
        return self.margin + column * (self.cell + self.gap) + (self.wide_gap - self.gap if column else 0)

    def draw_header(self, sheet: Image.Image) -> None:
        draw = ImageDraw.Draw(sheet)
        draw.line((self.margin, self.top, sheet.width - self.margin - 1, self.top), fill=SURFACE, width=2)
        titles = ("most anomalous places", self.cell), ("nearest good patches", 3 * self.cell)
        for column, (title, width) in enumerate(titles):
            text, font = fit_text(title, round(14 * self.unit), width + self.gap)
            draw.text((self.left(column), self.top + self.header // 2), text, font=font, fill=TEXT, anchor="lm")

    def draw_crop(self, sheet: Image.Image, row: int, column: int, shown: Place | Match, colour: Colour) -> None:
        """Fit a crop into its cell, mark its box, and write its label below."""
        left, top = self.left(column), self.top + self.header + row * self.height
        sheet.paste(SURFACE, (left, top, left + self.cell, top + self.cell))
        crop = shown.crop.convert("RGB")
        scale = self.cell / max(crop.size)
        width, height = (max(1, round(side * scale)) for side in crop.size)
        corner = left + (self.cell - width) // 2, top + (self.cell - height) // 2
        sheet.paste(crop.resize((width, height), Image.Resampling.BICUBIC), corner)
        marked = np.zeros((height, width), dtype=bool)
        x_near, y_near = (math.floor(edge * scale) for edge in shown.box[:2])
        x_far, y_far = (math.ceil(edge * scale) for edge in shown.box[2:])
        marked[y_near:y_far, x_near:x_far] = True
        draw_outline(sheet, corner, marked, colour, math.ceil(2 * self.unit))
        draw = ImageDraw.Draw(sheet)
        for number, (text, font) in enumerate(fit_lines(shown.label, self.text_size, self.cell, _LABEL_LINES)):
            y = top + self.cell + round(5 * self.unit) + number * self.line + self.line // 2
            draw.text((left, y), text, font=font, fill=TEXT if number == 0 else MUTED, anchor="lm")
