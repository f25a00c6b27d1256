"""Colours of anomaly maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchcore.pictures.text import Colour, _check_finite

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
