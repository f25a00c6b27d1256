"""Signed distances, coverage and noise, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from patchcore.synthetic import fields

X, Y = fields.pixel_grid(128)
X, Y = X - 0.5, Y - 0.5


def test_the_grid_holds_the_centres_of_the_pixels() -> None:
    x, y = fields.pixel_grid(4)
    assert x[2].tolist() == y[:, 2].tolist() == [0.125, 0.375, 0.625, 0.875]


def test_distances_by_hand() -> None:
    u, v = np.float32([[0.0, 0.5, 0.3, 0.0]]), np.float32([[0.0, 0.0, 0.4, 0.2]])
    np.testing.assert_allclose(fields.slot(u, v, 0.0, 0.1), [[-0.1, 0.4, 0.4, 0.1]], atol=1e-6)
    np.testing.assert_allclose(fields.slot(u, v, 0.3, 0.1), [[-0.1, 0.1, 0.3, 0.1]], atol=1e-6)
    np.testing.assert_allclose(fields.box(u, v, 0.2, 0.1, 0.0), [[-0.1, 0.3, np.hypot(0.1, 0.3), 0.1]], atol=1e-6)


def test_a_turned_bar_is_a_bar_between_turned_ends() -> None:
    upright = fields.bar(X, Y, (0.0, -0.2), (0.0, 0.3), 0.05)
    np.testing.assert_allclose(fields.bar(X, Y, (-0.2, 0.0), (0.3, 0.0), 0.05), upright.T, atol=1e-6)


def test_coverage_sums_to_the_area() -> None:
    disc = fields.coverage(fields.slot(X, Y, 0.0, 0.3))
    assert disc.mean() == pytest.approx(np.pi * 0.3**2, abs=1e-3)
    assert (disc.min(), disc.max()) == (0, 1)


def test_relief_is_bright_towards_the_sun_and_flat_away_from_the_edge() -> None:
    bevel = fields.relief(fields.slot(X, Y, 0.0, 0.3), 0.05, 0.0)  # the sun stands at the right
    assert bevel[64, 64 + 36] > 0.5
    assert bevel[64, 64 - 37] < -0.5
    assert bevel[64, 64] == 0


def test_clouds_have_unit_deviation() -> None:
    noise = fields.clouds(np.random.default_rng(0), 64, 8)
    assert noise.std() == pytest.approx(1, abs=1e-5)
    assert abs(noise.mean()) < 0.5


def test_blending_mixes_in_place() -> None:
    canvas = np.full((3, 1, 1), 0.2, np.float32)
    fields.blend(canvas, np.float32([[0.25]]), fields.rgb(255, 0, 51))
    np.testing.assert_allclose(canvas.ravel(), [0.4, 0.15, 0.2], atol=1e-6)
