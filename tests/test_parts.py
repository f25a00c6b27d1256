"""The parts stay in view."""

from __future__ import annotations

import numpy as np
import pytest

from patchcore.synthetic.parts import CATEGORIES


@pytest.mark.parametrize("category", CATEGORIES)
def test_parts_fit_into_the_usual_centre_crop_and_cover_part_of_it(category: str) -> None:
    for seed in range(5):
        depth = CATEGORIES[category].draw(np.random.default_rng(seed), 128).depth
        part = depth > 0
        margin = 0 if category == "metal_plate" else 128 // 16
        inner = part[margin : 128 - margin, margin : 128 - margin]
        assert part.sum() == inner.sum()
        assert 0.05 < part.mean() < 0.4
