"""Draw how the scores of good and of defective images are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from patchcore.pictures.heat import check_finite
from patchcore.pictures.text import BACKGROUND, MUTED, SURFACE, TEXT, Colour, fit_text, format_number, load_font

# Sky blue and orange of Okabe and Ito: told apart with every kind of colour vision.
GOOD: Colour = (86, 180, 233)
DEFECTIVE: Colour = (240, 150, 30)

SIZE = (640, 360)  # px


def draw_histogram(scores: ArrayLike, labels: ArrayLike, threshold: float | None, *, title: str) -> Image.Image:
    """Draw how the scores of good and of defective images are distributed, with the threshold as a line.

    Args:
        scores: (N,) image scores, the higher the more anomalous; finite.
        labels: (N,) bool, True where the image is defective.
        threshold: the score from which on an image counts as defective; None draws no line.
        title: shortened in its middle if it is too long.

    Returns:
        RGB image of 640 x 360 px.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if scores.ndim != 1 or scores.shape != labels.shape or not scores.size:
        raise ValueError(f"expected one label for each of N >= 1 scores, got {scores.shape} and {labels.shape}")
    check_finite("scores", scores)
    marks = [] if threshold is None else [float(threshold)]
    check_finite("threshold", np.array(marks))

    edges = _place_bins(np.concatenate([scores, marks]), bins=SIZE[0] // 16, anchor=threshold)
    good, defective = (np.histogram(scores[labels == label], edges)[0] for label in (False, True))
    plot = _Plot(edges, tallest=int(max(good.max(), defective.max())))
    plot.draw_axes()
    plot.draw_bars(good, GOOD)
    plot.draw_bars(defective, DEFECTIVE)
    legend = [(f"good ({(~labels).sum()})", GOOD), (f"defective ({labels.sum()})", DEFECTIVE)]
    for mark in marks:
        plot.draw_threshold(mark)
        legend.append((f"threshold {format_number(mark)}", TEXT))
    plot.draw_header(title, legend)
    return plot.sheet


class _Plot:
    """The canvas of a histogram: a sheet, the rectangle that holds the bars, and the bins that it spans."""

    def __init__(self, edges: NDArray[np.floating], *, tallest: int) -> None:
        self.sheet = Image.new("RGB", SIZE, BACKGROUND)
        self.draw = ImageDraw.Draw(self.sheet)
        self.font = load_font(12)
        self.left, self.top, self.right, self.bottom = 48, 66, SIZE[0] - 16, SIZE[1] - 44
        self.edges = edges
        self.tallest = max(1, tallest)

    def x(self, score: float) -> int:
        low, high = self.edges[0], self.edges[-1]
        return round(self.left + (score - low) / (high - low) * (self.right - self.left))

    def y(self, count: float) -> int:
        return round(self.bottom - count / self.tallest * (self.bottom - self.top))

    def draw_axes(self) -> None:
        for value, label in _place_ticks(0, self.tallest, most=5, least_step=1):
            self.draw.line((self.left, self.y(value), self.right, self.y(value)), fill=SURFACE)
            self.draw.text((self.left - 8, self.y(value)), label, font=self.font, fill=MUTED, anchor="rm")
        for value, label in _place_ticks(self.edges[0], self.edges[-1], most=6):
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
        text, font = fit_text(title, 15, self.sheet.width - 32)
        self.draw.text((16, 20), text, font=font, fill=TEXT, anchor="lm")
        self.draw.text((16, 46), "images", font=self.font, fill=MUTED, anchor="lm")
        right = self.right
        for label, colour in reversed(legend):
            right -= math.ceil(self.font.getlength(label))
            self.draw.text((right, 46), label, font=self.font, fill=MUTED, anchor="lm")
            self.draw.rectangle((right - 14, 42, right - 6, 50), fill=colour)
            right -= 28


def _place_bins(values: NDArray[np.float64], *, bins: int, anchor: float | None) -> NDArray[np.floating]:
    """Return the edges of about `bins` equal bins that hold all values; no bar straddles `anchor`, which is an edge."""
    low, high = float(values.min()), float(values.max())
    # A little room at both ends; if all values are equal, a span that is wide compared with their rounding.
    spare = 0.02 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - spare, high + spare
    width = (high - low) / bins
    anchor = low if anchor is None else float(anchor)
    return anchor + width * np.arange(math.floor((low - anchor) / width), math.ceil((high - anchor) / width) + 1)


def _place_ticks(low: float, high: float, *, most: int, least_step: float = 0) -> list[tuple[float, str]]:
    """Return up to `most` + 1 round values in [low, high], 1, 2 or 5 times a power of ten apart, and their labels."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = max(least_step, next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / most))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
    if decimals > 4 or max(abs(low), abs(high)) >= 1e6:
        return [(value, format_number(value)) for value in values]
    return [(value, f"{value:.{decimals}f}") for value in values]
