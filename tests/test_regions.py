"""Connected regions, solved by hand and against a flood fill."""

import numpy as np
import pytest

from patchcore.regions import connected_regions
from patchcore.types import MapRegion


def test_regions_solved_by_hand():
    anomaly_map = np.array(
        [
            [5, 1, 1, 1, 1],
            [1, 6, 1, 1, 9],
            [1, 1, 1, 2, 1],
            [1, 1, 1, 1, 1],
            [7, 7, 1, 1, 2.5],
        ],
        dtype=np.float32,
    )
    labels, regions = connected_regions(anomaly_map, 2)
    assert labels.dtype == np.int32
    assert labels.tolist() == [
        [3, 0, 0, 0, 0],
        [0, 3, 0, 0, 1],
        [0, 0, 0, 0, 0],  # 2 is not above 2
        [0, 0, 0, 0, 0],
        [2, 2, 0, 0, 4],
    ]
    assert regions == (
        MapRegion(box=(4, 1, 5, 2), pixels=1, peak=9),
        MapRegion(box=(0, 4, 2, 5), pixels=2, peak=7),
        MapRegion(box=(0, 0, 2, 2), pixels=2, peak=6),  # joined at a corner
        MapRegion(box=(4, 4, 5, 5), pixels=1, peak=2.5),
    )


def test_no_region_or_all_pixels():
    ramp = np.arange(12, dtype=np.float32).reshape(3, 4)
    for threshold in (11, np.inf):
        labels, regions = connected_regions(ramp, threshold)
        assert not labels.any()
        assert regions == ()
    labels, regions = connected_regions(ramp, -np.inf)
    assert (labels == 1).all()
    assert regions == (MapRegion(box=(0, 0, 4, 3), pixels=12, peak=11),)


def test_the_threshold_is_not_rounded_to_the_precision_of_the_map():
    third = np.float32(1 / 3)  # a little above 1 / 3
    assert len(connected_regions(np.full((2, 2), third), 1 / 3)[1]) == 1
    assert len(connected_regions(np.full((2, 2), third), float(third))[1]) == 0


def flood_fill(above: np.ndarray) -> list[set[tuple[int, int]]]:
    """The sets of pixels that a king on a chess board could walk between."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(above), strict=True)}
    regions = []
    while left:
        region, border = set(), [left.pop()]
        while border:
            y, x = border.pop()
            region.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            border.extend(near)
        regions.append(region)
    return regions


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8])
def test_regions_equal_a_flood_fill(threshold):
    anomaly_map = np.random.default_rng(0).random((40, 31), dtype=np.float32)
    labels, regions = connected_regions(anomaly_map, threshold)
    expected = flood_fill(anomaly_map > threshold)
    expected.sort(key=lambda region: -max(anomaly_map[pixel] for pixel in region))
    assert len(regions) == len(expected)
    assert (labels > 0).sum() == sum(map(len, expected))
    for number, (region, pixels) in enumerate(zip(regions, expected, strict=True), start=1):
        assert {(int(y), int(x)) for y, x in np.argwhere(labels == number)} == pixels
        rows, columns = zip(*pixels, strict=True)
        assert region.box == (min(columns), min(rows), max(columns) + 1, max(rows) + 1)
        assert region.pixels == len(pixels)
        assert region.peak == max(anomaly_map[pixel] for pixel in pixels)


def test_equal_peaks_keep_the_order_of_rows():
    regions = connected_regions(np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]]), 0.5)[1]
    assert [region.box[:2] for region in regions] == [(2, 0), (0, 2)]


@pytest.mark.parametrize(
    ("anomaly_map", "threshold", "expected"),
    [
        (np.zeros((1, 2, 2)), 0, r"\(H, W\) anomaly map, got shape \(1, 2, 2\)"),
        (np.array([[0, np.nan]]), 0, "finite anomaly map"),
        (np.zeros((2, 2)), np.nan, "threshold nan"),
    ],
)
def test_what_is_no_map_is_refused(anomaly_map, threshold, expected):
    with pytest.raises(ValueError, match=expected):
        connected_regions(anomaly_map, threshold)
