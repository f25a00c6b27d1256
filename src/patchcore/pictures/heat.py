"""Colours of anomaly maps, and the scale that maps share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchcore.pictures.text import Colour

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
_CHANNELS = [np.interp(np.linspace(0, 1, 256), _POSITIONS, channel) for channel in zip(*_COLOURS, strict=True)]

HEAT_COLOURS: NDArray[np.uint8] = np.stack(_CHANNELS, axis=1).round().astype(np.uint8)
"""(256, 3) RGB, from normal to anomalous."""


@dataclass(frozen=True, kw_only=True)
class HeatScale:
    """The map values at the two ends of the heat colours, shared by all images of a category."""

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
            ValueError: the maps are empty, not three-dimensional, or hold nan or infinity.
        """
        maps = np.asarray(maps)
        if maps.ndim != 3 or maps.size == 0:
            raise ValueError(f"a heat scale needs (N, H, W) maps with at least one pixel, got shape {maps.shape}")
        check_finite("maps", maps)
        low = float(np.median(maps[:, ::4, ::4]))
        high = float(np.quantile(maps.max(axis=(1, 2)), 0.95))
        return cls(low=low, high=max(low, high))

    def levels(self, anomaly_map: NDArray[np.floating]) -> NDArray[np.uint8]:
        """The index into `HEAT_COLOURS` of every pixel; values beyond the scale get its ends.

        On a scale without extent (`low == high`) values up to it get 0 and values above it 255.

        Args:
            anomaly_map: (H, W) anomaly map, the higher the more anomalous; finite.

        Returns:
            (H, W) uint8.
        """
        anomaly_map = np.asarray(anomaly_map)
        if anomaly_map.ndim != 2 or anomaly_map.size == 0:
            raise ValueError(f"expected an (H, W) anomaly map with at least one pixel, got shape {anomaly_map.shape}")
        check_finite("the anomaly map", anomaly_map)
        if self.low == self.high:
            return np.where(anomaly_map > self.low, np.uint8(255), np.uint8(0))
        within = np.clip(anomaly_map, self.low, self.high, dtype=np.float64)
        within -= self.low
        within /= self.high - self.low
        return (within * 255 + 0.5).astype(np.uint8)


def check_finite(name: str, values: NDArray[np.floating]) -> None:
    """Raise ValueError if `values` hold nan or infinity."""
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise ValueError(f"{name} must be finite, got nan or infinity in {wrong} of {values.size} values")
