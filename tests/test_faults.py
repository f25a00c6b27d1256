"""Faults grow with their severity and stay on the parts."""

from __future__ import annotations

import numpy as np
import pytest

from patchcore.synthetic import parts
from patchcore.synthetic.parts import CATEGORIES


@pytest.mark.parametrize("fault", [parts.bare_metal, parts.rust_blots, parts.FEW_SCRATCHES])
def test_a_more_severe_fault_changes_more(fault: parts.Fault) -> None:
    scene = CATEGORIES["bracket_black"].draw(np.random.default_rng(0), 64)
    totals = []
    for severity in (0.0, 1.0):
        alphas = [fault(np.random.default_rng(seed), scene, severity)[0] for seed in range(10)]
        totals.append(np.mean([alpha.sum() for alpha in alphas]))
    assert totals[1] > 1.5 * totals[0]


@pytest.mark.parametrize("fault", [parts.drilled_hole, parts.paint_run, parts.MANY_SCRATCHES])
def test_faults_stay_on_the_parts(fault: parts.Fault) -> None:
    scene = CATEGORIES["metal_plate"].draw(np.random.default_rng(0), 64)
    alpha, _ = fault(np.random.default_rng(1), scene, 0.5)
    assert alpha.max() > 0.4
    assert not alpha[scene.depth < -1 / 64].any()
