"""Plots as inline SVG, coloured by the page's style sheet; titles and descriptions say what they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from patchcore.comparison.table import format_amount
from patchcore.results.scores import ImageScores

COLOURS = 8  # classes m0 to m7 of the style sheet

_WIDTH, _HEIGHT, _MARGIN = 320, 170, 24  # of a distribution
_BINS = 32
_SIDE, _LEFT, _TOP, _BOTTOM = 260, 36, 8, 30  # of ROC curves


def _svg(width: float, height: float, title: str, description: str, parts: Sequence[str]) -> str:
    """A picture that scales with the page."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text class="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def distribution(scores: ImageScores, threshold: float, title: str) -> str:
    """Histogram of the values that the threshold cuts: good images upwards, defective ones downwards.

    Bars are shares of their class: few good images stand as high as many defective ones. `threshold` may be nan.
    """
    good, defective = scores.values[~scores.labels], scores.values[scores.labels]
    ends = [*scores.values, *([] if math.isnan(threshold) else [threshold])]
    low, high = min(ends), max(ends)
    counts = f"{len(good)} good and {len(defective)} defective images"
    description = f"Scores of {counts} from {format_amount(low)} to {format_amount(high)}."
    middle = _HEIGHT / 2
    parts = [
        *_bars(good, defective, low, high),
        f'<line class="axis" x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{middle}" y2="{middle}"/>',
        _text(_MARGIN, _HEIGHT - 6, format_amount(low)),
        _text(_WIDTH / 2, _HEIGHT - 6, "score", "middle"),
        _text(_WIDTH - _MARGIN, _HEIGHT - 6, format_amount(high), "end"),
    ]
    if not math.isnan(threshold):
        x = _MARGIN + (threshold - low) / ((high - low) or 1) * (_WIDTH - 2 * _MARGIN)
        parts.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{_HEIGHT - 20}"/>')
        parts.append(_text(x, 14, f"threshold {format_amount(threshold)}", "end" if x > _WIDTH / 2 else "start"))
        description += (
            f" The threshold {format_amount(threshold)} catches {(defective > threshold).sum()} of the defective and"
            f" rejects {(good > threshold).sum()} of the good ones."
        )
    return _svg(_WIDTH, _HEIGHT, title, description, parts)


def _bars(good: NDArray[np.float64], defective: NDArray[np.float64], low: float, high: float) -> list[str]:
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    shares = [np.histogram(values, edges)[0] / max(1, len(values)) for values in (good, defective)]
    tallest = max(share.max() for share in shares)
    middle, reach = _HEIGHT / 2, _HEIGHT / 2 - _MARGIN
    step = (_WIDTH - 2 * _MARGIN) / _BINS
    bars = []
    for name, share in zip(("good", "defective"), shares, strict=True):
        for place in np.flatnonzero(share):
            height = share[place] / tallest * reach
            x, y = _MARGIN + place * step + 0.5, middle - height if name == "good" else middle
            bars.append(f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{step - 1:.1f}" height="{height:.1f}"/>')
    return bars


def roc(curves: Mapping[str, ImageScores], title: str) -> str:
    """A ROC curve per contender: the share of defective images caught over the share of good ones rejected."""
    right, bottom = _LEFT + _SIDE, _TOP + _SIDE

    def polyline(kind: str, points: Sequence[tuple[float, float]], name: str = "") -> str:
        places = " ".join(f"{_LEFT + x * _SIDE:.1f},{bottom - y * _SIDE:.1f}" for x, y in points)
        return f'<polyline class="{kind}" points="{places}"><title>{escape(name)}</title></polyline>'

    parts = [
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"/>',
        polyline("chance", [(0, 0), (1, 1)], "chance"),
    ]
    for tick in (0, 0.5, 1):
        parts.append(_text(_LEFT - 4, bottom - tick * _SIDE + 4, f"{tick:g}", "end"))
        parts.append(_text(_LEFT + tick * _SIDE, bottom + 14, f"{tick:g}", "middle"))
    parts.append(_text(right, bottom + 27, "share of good images rejected", "end"))
    parts.append(f'<g transform="translate(11 {_TOP}) rotate(-90)">{_text(0, 0, "share of defects caught", "end")}</g>')
    for number, (name, scores) in enumerate(curves.items()):
        points = roc_points(scores.scores, scores.labels)
        parts.append(polyline(f"curve m{number % COLOURS}", points, name))
    description = f"Share of defective images caught over share of good ones rejected: {', '.join(curves)}."
    return _svg(right + 12, bottom + _BOTTOM, title, description, parts)


def roc_points(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """The corners of a ROC curve from (0, 0) to (1, 1); tied images move both rates at once."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    caught = labels[order].cumsum()[last_of_ties] / labels.sum()
    rejected = (~labels[order]).cumsum()[last_of_ties] / (~labels).sum()
    return [(0.0, 0.0), *zip(rejected.tolist(), caught.tolist(), strict=True)]
