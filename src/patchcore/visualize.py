"""Pictures of what a detector says: overlays, contact sheets, score histograms; arrays and a font."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BACKGROUND: Colour = (22, 24, 28)
SURFACE: Colour = (40, 43, 50)
TEXT: Colour = (236, 238, 242)
MUTED: Colour = (158, 164, 174)
# Cyan occurs nowhere in the heat map, and nobody confuses it with orange.
OUTLINE: Colour = (60, 230, 255)
# Sky blue and orange of Okabe and Ito: told apart with every kind of colour vision.
GOOD: Colour = (86, 180, 233)
DEFECTIVE: Colour = (240, 150, 30)

# Navy, violet, plum, rose, orange, amber, ivory: the position of each is its CIE lightness L*, rescaled to
# [0, 1]: equal steps of the map are equal steps of lightness, and the order survives a grey-scale print.
_CONTROL_POINTS: tuple[tuple[float, Colour], ...] = (
    (0.000, (8, 10, 26)),
    (0.137, (46, 24, 98)),
    (0.293, (120, 34, 124)),
    (0.456, (196, 58, 92)),
    (0.626, (238, 116, 50)),
    (0.817, (250, 190, 74)),
    (1.000, (255, 250, 216)),
)
_POSITIONS, _COLOURS = zip(*_CONTROL_POINTS, strict=True)
_STEPS = np.linspace(0, 1, 256)
_CHANNELS = [np.interp(_STEPS, _POSITIONS, channel) for channel in zip(*_COLOURS, strict=True)]
HEAT_COLOURS: NDArray[np.uint8] = np.stack(_CHANNELS, axis=1).round().astype(np.uint8)
"""(256, 3) RGB, from normal to anomalous."""

# Opacity of the heat over the part: normal places show the part, hot ones the colour.
_OPACITY = (255 * (0.45 + 0.45 * _STEPS)).round().astype(np.uint8)  # (256,)

_LEAST_PANEL = 192  # px; below it neither title nor captions fit
_FONTS_OF_THE_SYSTEM = ("DejaVuSans.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "Arial Unicode.ttf")


@dataclass(frozen=True, kw_only=True)
class HeatScale:
    """The map values at the two ends of the colour map, shared by all images of a category."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a heat scale needs finite low <= high, got low {self.low} and high {self.high}")

    @classmethod
    def of(cls, maps: NDArray[np.floating]) -> HeatScale:
        """The scale for the maps of one category.

        `low` is the median pixel (of every fourth in both directions): most pixels of a category are normal,
        so normal texture stays dark; with the minimum it would fill the lower third of the colours. `high` is
        the 95th percentile of the maps' own maxima: unlike a percentile of all pixels it does not depend on how
        large the defects are, and unlike the maximum one extreme image does not dim the others.

        Args:
            maps: (N, H, W) anomaly maps, the higher the more anomalous; finite.

        Raises:
            ValueError: where the maps are empty, not three-dimensional, or hold nan or infinity.
        """
        maps = np.asarray(maps)
        if maps.ndim != 3 or maps.size == 0:
            raise ValueError(f"a heat scale needs (N, H, W) maps with at least one pixel, got shape {maps.shape}")
        _check_finite("maps", maps)
        low = float(np.median(maps[:, ::4, ::4]))
        high = float(np.quantile(maps.max(axis=(1, 2)), 0.95))
        return cls(low=low, high=max(low, high))


def colourise(anomaly_map: NDArray[np.floating], scale: HeatScale) -> NDArray[np.uint8]:
    """Colours of a map: dark is normal, bright is anomalous, values beyond the scale look like its ends.

    On a scale without extent (`low == high`) all values up to it are normal and all above it anomalous.

    Args:
        anomaly_map: (H, W) anomaly map, the higher the more anomalous; finite.
        scale: the values at the ends of the colour map.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return HEAT_COLOURS.take(_levels(anomaly_map, scale), axis=0)


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


def score_histogram(
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float | None,
    *,
    title: str,
    size: tuple[int, int] = (640, 360),
) -> Image.Image:
    """How the scores of good and of defective images are distributed, with the threshold as a line.

    Args:
        scores: (N,) image scores, the higher the more anomalous; finite.
        labels: (N,) bool, True where the image is defective.
        threshold: the score from which on an image counts as defective; None draws no line.
        title: shortened in its middle where it is too long.
        size: width and height in px, at least 400 x 240.

    Returns:
        RGB image of that size.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if scores.ndim != 1 or scores.shape != labels.shape or not scores.size:
        raise ValueError(f"expected one label for each of N >= 1 scores, got {scores.shape} and {labels.shape}")
    if size[0] < 400 or size[1] < 240:
        raise ValueError(f"a histogram needs at least 400 x 240 px, got {size[0]} x {size[1]}")
    _check_finite("scores", scores)
    marks = [] if threshold is None else [float(threshold)]
    _check_finite("threshold", np.array(marks))

    edges = _bin_edges(np.concatenate([scores, marks]), bins=size[0] // 16, anchor=threshold)
    good, defective = (np.histogram(scores[labels == label], edges)[0] for label in (False, True))
    plot = _Plot(size, edges, tallest=int(max(good.max(), defective.max())))
    plot.draw_axes()
    plot.draw_bars(good, GOOD)
    plot.draw_bars(defective, DEFECTIVE)
    legend = [(f"good ({(~labels).sum()})", GOOD), (f"defective ({labels.sum()})", DEFECTIVE)]
    for mark in marks:
        plot.draw_threshold(mark)
        legend.append((f"threshold {_short(mark)}", TEXT))
    plot.draw_header(title, legend)
    return plot.sheet


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


class _Plot:
    """The canvas of a histogram: a sheet, the rectangle that holds the bars, and the bins that it spans."""

    def __init__(self, size: tuple[int, int], edges: NDArray[np.float64], *, tallest: int) -> None:
        self.sheet = Image.new("RGB", size, BACKGROUND)
        self.draw = ImageDraw.Draw(self.sheet)
        self.font = _font(12)
        self.left, self.top, self.right, self.bottom = 48, 66, size[0] - 16, size[1] - 44
        self.edges = edges
        self.tallest = max(1, tallest)

    def x(self, score: float) -> int:
        low, high = self.edges[0], self.edges[-1]
        return round(self.left + (score - low) / (high - low) * (self.right - self.left))

    def y(self, count: float) -> int:
        return round(self.bottom - count / self.tallest * (self.bottom - self.top))

    def draw_axes(self) -> None:
        for value, label in _ticks(0, self.tallest, most=5, least_step=1):
            self.draw.line((self.left, self.y(value), self.right, self.y(value)), fill=SURFACE)
            self.draw.text((self.left - 8, self.y(value)), label, font=self.font, fill=MUTED, anchor="rm")
        for value, label in _ticks(self.edges[0], self.edges[-1], most=6):
            self.draw.line((self.x(value), self.bottom, self.x(value), self.bottom + 4), fill=MUTED)
            self.draw.text((self.x(value), self.bottom + 8), label, font=self.font, fill=MUTED, anchor="mt")
        self.draw.line((self.left, self.bottom, self.right, self.bottom), fill=MUTED)
        self.draw.text((self.right, self.bottom + 24), "image score", font=self.font, fill=MUTED, anchor="rt")

    def draw_bars(self, counts: NDArray[np.integer], colour: Colour) -> None:
        opacity = Image.new("L", self.sheet.size)
        draw = ImageDraw.Draw(opacity)
        for count, left, right in zip(counts.tolist(), self.edges[:-1], self.edges[1:], strict=True):
            if count:
                box = (self.x(left) + 1, self.y(count), self.x(right) - 1, self.bottom - 1)
                draw.rectangle(box, fill=150, outline=255)
        self.sheet.paste(colour, (0, 0, *self.sheet.size), opacity)

    def draw_threshold(self, threshold: float) -> None:
        x = self.x(threshold)
        for y in range(self.top - 6, self.bottom, 7):
            self.draw.line((x, y, x, min(y + 3, self.bottom - 1)), fill=TEXT, width=2)

    def draw_header(self, title: str, legend: Sequence[tuple[str, Colour]]) -> None:
        text, font = _fit(title, 15, self.sheet.width - 32)
        self.draw.text((16, 20), text, font=font, fill=TEXT, anchor="lm")
        self.draw.text((16, 46), "images", font=self.font, fill=MUTED, anchor="lm")
        right = self.right
        for label, colour in reversed(legend):
            right -= math.ceil(self.font.getlength(label))
            self.draw.text((right, 46), label, font=self.font, fill=MUTED, anchor="lm")
            self.draw.rectangle((right - 14, 42, right - 6, 50), fill=colour)
            right -= 28


def _levels(anomaly_map: NDArray[np.floating], scale: HeatScale) -> NDArray[np.uint8]:
    """Index into the colour map of every pixel of an (H, W) map."""
    anomaly_map = np.asarray(anomaly_map)
    if anomaly_map.ndim != 2 or anomaly_map.size == 0:
        raise ValueError(f"expected an (H, W) anomaly map with at least one pixel, got shape {anomaly_map.shape}")
    _check_finite("the anomaly map", anomaly_map)
    if scale.low == scale.high:
        return np.where(anomaly_map > scale.low, np.uint8(255), np.uint8(0))
    within = np.clip(anomaly_map, scale.low, scale.high, dtype=np.float64)
    within -= scale.low
    within /= scale.high - scale.low
    return (within * 255 + 0.5).astype(np.uint8)


def _check_finite(name: str, values: NDArray[np.floating]) -> None:
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise ValueError(f"{name} must be finite, got nan or infinity in {wrong} of {values.size} values")


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


def _bin_edges(values: NDArray[np.float64], *, bins: int, anchor: float | None) -> NDArray[np.float64]:
    """About `bins` equal bins that hold all values, one edge exactly on `anchor`: no bar straddles the threshold."""
    low, high = float(values.min()), float(values.max())
    # A little room at both ends; where all values are equal, a span that is wide next to their rounding.
    spare = 0.02 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - spare, high + spare
    width = (high - low) / bins
    anchor = low if anchor is None else float(anchor)
    return anchor + width * np.arange(math.floor((low - anchor) / width), math.ceil((high - anchor) / width) + 1)


def _ticks(low: float, high: float, *, most: int, least_step: float = 0) -> list[tuple[float, str]]:
    """Up to `most` + 1 round values in [low, high], 1, 2 or 5 times a power of ten apart, with their labels."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = max(least_step, next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / most))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    if decimals > 4 or max(abs(low), abs(high)) >= 1e6:
        return [(value, _short(value)) for value in values]
    return [(value, f"{value:.{decimals}f}") for value in values]
