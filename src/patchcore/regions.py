"""Connected regions of an anomaly map. Pure functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patchcore.types import MapRegion


def connected_regions(
    anomaly_map: NDArray[np.floating], threshold: float
) -> tuple[NDArray[np.int32], tuple[MapRegion, ...]]:
    """Find the connected regions of the pixels above a threshold; pixels that touch at a corner belong together.

    Args:
        anomaly_map: (H, W), the higher the more anomalous; finite.
        threshold: a pixel belongs to a region if its value is higher; may be infinite.

    Returns:
        (H, W) int32, the number of the region that each pixel belongs to, 0 for none; and the regions by number,
        from 1 on: the one with the highest peak first, among equal peaks the one that begins further up.

    Raises:
        ValueError: the map is not two-dimensional, or it or the threshold is not a number somewhere.
    """
    from scipy.ndimage import find_objects, label

    anomaly_map = np.asarray(anomaly_map, dtype=np.float64)  # as precise as the threshold
    if anomaly_map.ndim != 2:
        raise ValueError(f"expected an (H, W) anomaly map, got shape {anomaly_map.shape}")
    if not np.isfinite(anomaly_map).all() or np.isnan(threshold):
        raise ValueError(f"expected a finite anomaly map and a threshold that is a number, got threshold {threshold}")
    found, count = label(anomaly_map > threshold, structure=np.ones((3, 3)))
    pixels = np.bincount(found.ravel(), minlength=count + 1)
    regions = []
    for number, (rows, columns) in enumerate(find_objects(found), start=1):
        peak = anomaly_map[rows, columns][found[rows, columns] == number].max()
        box = columns.start, rows.start, columns.stop, rows.stop
        regions.append(MapRegion(box=box, pixels=int(pixels[number]), peak=float(peak)))
    order = sorted(range(count), key=lambda index: -regions[index].peak)
    renumber = np.zeros(count + 1, dtype=np.int32)
    renumber[1 + np.array(order, dtype=np.intp)] = np.arange(1, count + 1)
    return renumber[found], tuple(regions[index] for index in order)
