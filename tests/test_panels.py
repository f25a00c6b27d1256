"""Outlines: beside the regions, dark edges beside them, and nothing beyond."""

import numpy as np
import pytest
from PIL import Image

from patchcore.pictures.panels import OUTLINE, draw_outline, grow, trace_outline
from patchcore.pictures.text import BACKGROUND


def test_masks_grow_by_steps_in_four_directions():
    mask = np.zeros((7, 9), bool)
    mask[3, 4] = True
    y, x = np.indices(mask.shape)
    for steps in (0, 1, 2, 3):
        np.testing.assert_array_equal(grow(mask, steps), abs(y - 3) + abs(x - 4) <= steps)
    assert mask.sum() == 1
    np.testing.assert_array_equal(trace_outline(mask, 2), grow(mask, 2) & ~mask)


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), (60, 200, 250)])
def test_outlines_have_a_dark_edge_on_any_ground(ground):
    mask = np.zeros((30, 30), bool)
    mask[10:20, 8:20] = True
    sheet = Image.new("RGB", (40, 40), ground)
    draw_outline(sheet, (5, 5), mask, OUTLINE, 2)
    row = np.asarray(sheet)[5 + 15]  # through the middle of the region
    expected = np.full((40, 3), ground)
    left, right = 5 + 8, 5 + 20
    expected[[left - 2, left - 1, right, right + 1]] = OUTLINE
    expected[[left - 3, right + 2]] = BACKGROUND
    np.testing.assert_array_equal(row, expected)


def test_regions_at_the_border_are_closed_outside_of_the_panel():
    sheet = Image.new("RGB", (40, 40), (255, 255, 255))
    draw_outline(sheet, (10, 10), np.ones((20, 20), bool), OUTLINE, 2)
    pixels = np.asarray(sheet)
    assert (pixels[10:30, 10:30] == 255).all()
    for line in (pixels[8:10, 10:30], pixels[30:32, 10:30], pixels[10:30, 8:10], pixels[10:30, 30:32]):
        assert (line == OUTLINE).all()


def test_outlines_may_leave_the_sheet():
    sheet = Image.new("RGB", (8, 8))
    draw_outline(sheet, (0, 0), np.eye(8, dtype=bool), OUTLINE, 2)
    pixels = np.asarray(sheet)
    assert (pixels[0, 1] == OUTLINE).all()
    assert not pixels[np.eye(8, dtype=bool)].any()
