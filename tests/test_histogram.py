"""Score histograms: good and defective bars on their sides of the threshold, whatever the scores."""

import numpy as np
import pytest

from patchcore.pictures import histogram
from patchcore.pictures.histogram import draw_histogram
from patchcore.pictures.text import TEXT


def test_histogram_shows_good_left_and_defective_right_of_the_threshold():
    scores, labels = [1.0, 1.1, 1.2, 3.0, 3.1], [False, False, False, True, True]
    plot = np.asarray(draw_histogram(scores, labels, 2.0, title="x")).astype(int)[66:-45]
    dash = (plot == TEXT).all(axis=2).any(axis=0)
    line = np.flatnonzero(dash)
    assert 1 <= len(line) <= 2
    blue = np.flatnonzero((plot == histogram.GOOD).all(axis=2).any(axis=0))
    orange = np.flatnonzero((plot == histogram.DEFECTIVE).all(axis=2).any(axis=0))
    assert blue.max() < line.min() <= line.max() < orange.min()
    without = np.asarray(draw_histogram(scores, labels, None, title="x"))[66:-45]
    assert not (without == TEXT).all(axis=2).any()


def test_an_edge_of_the_bins_lies_on_the_threshold():
    values = np.random.default_rng(0).normal(size=100)
    edges = histogram._place_bins(values, bins=40, anchor=0.1234)
    assert 0.1234 in edges
    assert edges[0] < values.min()
    assert values.max() < edges[-1]
    assert np.histogram(values, edges)[0].sum() == 100


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([3.0, 3.0], 3.0), ([0.0], None), ([1e-300, 2e-300], None), ([-1e30, 1e30], 0.0), ([1.0, 1.0 + 2e-16], 1e6)],
)
def test_histograms_of_odd_scores(scores, threshold):
    labels = [True] * len(scores)
    assert draw_histogram(scores, labels, threshold, title="ü" * 300).size == (640, 360)


@pytest.mark.parametrize(
    ("scores", "labels", "threshold", "message"),
    [
        ([], [], None, "N >= 1 scores"),
        ([1.0], [True, False], None, "one label for each"),
        ([np.nan], [True], None, "scores must be finite"),
        ([1.0], [True], np.inf, "threshold must be finite"),
    ],
)
def test_impossible_histograms_are_refused(scores, labels, threshold, message):
    with pytest.raises(ValueError, match=message):
        draw_histogram(scores, labels, threshold, title="x")


def test_ticks_are_round():
    assert histogram._place_ticks(0, 9, most=5, least_step=1) == [(0, "0"), (2, "2"), (4, "4"), (6, "6"), (8, "8")]
    assert [label for _, label in histogram._place_ticks(0.23, 1.01, most=6)] == ["0.4", "0.6", "0.8", "1.0"]
    assert [label for _, label in histogram._place_ticks(0, 1e-6, most=5)][:2] == ["0", "2e-7"]
