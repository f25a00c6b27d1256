"""The heat colours are evenly spaced, and scales are robust."""

import numpy as np
import pytest

from lightness import lightness
from patchcore.pictures.heat import HEAT_COLOURS, HeatScale

UNIT = HeatScale(low=0, high=1)


def test_colours_run_from_navy_to_ivory_in_even_steps_of_lightness():
    assert HEAT_COLOURS[0].tolist() == [8, 10, 26]
    assert HEAT_COLOURS[-1].tolist() == [255, 250, 216]
    steps = lightness(HEAT_COLOURS.astype(float))
    assert (np.diff(steps) > 0).all()
    np.testing.assert_allclose(steps, np.linspace(steps[0], steps[-1], 256), atol=1.5)


def test_colours_between_two_control_points_are_mixed_from_both():
    # Entry 51 is 0.2 of the way, between violet at 0.137 and plum at 0.293: 0.063 / 0.156 = 0.4038 from violet.
    np.testing.assert_allclose(HEAT_COLOURS[51], [46 + 0.4038 * 74, 24 + 0.4038 * 10, 98 + 0.4038 * 26], atol=0.51)


def test_levels_map_the_scale_onto_the_colours_and_cut_at_its_ends():
    levels = HeatScale(low=2, high=6).levels(np.array([[-7.0, 2.0, 4.0, 6.0, 99.0]], np.float32))
    assert levels.dtype == np.uint8
    assert levels.tolist() == [[0, 0, 128, 255, 255]]  # 4 is half way: 127.5, rounded up


def test_levels_do_not_change_the_map():
    values = np.array([[1.0, 5.0]], np.float64)
    UNIT.levels(values)
    assert values.tolist() == [[1.0, 5.0]]


@pytest.mark.parametrize("span", [1e-30, 5e-324, 1e30])
def test_levels_hold_for_any_span(span):
    assert HeatScale(low=0, high=span).levels(np.array([[0.0, span]])).tolist() == [[0, 255]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_maps_that_are_not_finite_are_refused(value):
    maps = np.zeros((2, 8, 8), np.float32)
    maps[1, 3, 5] = value  # not among every fourth pixel
    with pytest.raises(ValueError, match="maps must be finite, got nan or infinity in 1 of 128 values"):
        HeatScale.of(maps)
    with pytest.raises(ValueError, match="anomaly map must be finite"):
        UNIT.levels(maps[1])


@pytest.mark.parametrize("shape", [(8, 8), (0, 8, 8), (1, 2, 8, 8)])
def test_a_scale_needs_maps(shape):
    with pytest.raises(ValueError, match="got shape"):
        HeatScale.of(np.zeros(shape))
    with pytest.raises(ValueError, match="got shape"):
        UNIT.levels(np.zeros((0, 8)))


def test_scale_is_the_median_pixel_and_the_95th_percentile_of_the_maxima():
    maps = np.full((21, 8, 8), 3.0, np.float32)
    maps[:, 1, 1] = np.arange(10, 31)  # the maxima 10 ... 30; the one of rank 0.95 * 20 = 19 is 29
    assert HeatScale.of(maps) == HeatScale(low=3, high=29)


def test_one_extreme_image_does_not_dim_the_others():
    maps = np.random.default_rng(0).random((40, 16, 16), np.float32)
    maps[7] *= 1e6
    assert HeatScale.of(maps).high < 1.1


def test_constant_maps_are_dark_and_what_rises_above_them_is_bright():
    scale = HeatScale.of(np.full((3, 8, 8), 0.7, np.float32))
    assert scale.low == scale.high
    with np.errstate(all="raise"):
        levels = scale.levels(np.array([[0.1, scale.low, 0.8]]))
    assert levels.tolist() == [[0, 0, 255]]


@pytest.mark.parametrize(("low", "high"), [(2, 1), (np.nan, 1), (0, np.inf)])
def test_impossible_scales_are_refused(low, high):
    with pytest.raises(ValueError, match="finite low <= high"):
        HeatScale(low=low, high=high)
