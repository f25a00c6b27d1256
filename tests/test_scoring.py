import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from golden import GOLDEN, needs_golden
from patchcore.scoring import (
    anomaly_maps,
    decision_values,
    derive_verdict,
    image_scores,
    p_values,
    patch_scores,
)


@needs_golden
@pytest.mark.parametrize("k", [1, 3])
def test_golden_scores_and_maps(k):
    case = np.load(GOLDEN / f"scoring_k{k}.npz")
    grid = torch.from_numpy(case["patch_scores"]).reshape(2, 28, 28)
    np.testing.assert_array_equal(image_scores(grid).numpy(), case["image_scores"])
    np.testing.assert_allclose(anomaly_maps(grid, (224, 224)).numpy(), case["maps"], rtol=1e-5)


@pytest.mark.parametrize("size", [(40, 40), (33, 70), (8, 5)])
def test_maps_equal_interpolation_then_gaussian_filter(size):
    torch.manual_seed(0)
    grid = torch.rand(3, 9, 7)
    resized = torch.nn.functional.interpolate(grid[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    expected = np.stack([gaussian_filter(each, sigma=4) for each in resized.numpy()])
    np.testing.assert_allclose(anomaly_maps(grid, size).numpy(), expected, atol=1e-6)


def test_scores_solved_by_hand():
    distances = torch.tensor([[1.0, 3.0], [4.0, 8.0]])
    assert patch_scores(distances).tolist() == [2.0, 6.0]
    assert image_scores(torch.tensor([[[1.0, 5.0], [2.0, 3.0]]])).tolist() == [5.0]


def test_decision_values_of_an_ensemble_do_not_depend_on_the_other_test_images():
    raw = np.array([[1.0, 4.0], [10.0, 20.0]])
    held_out = np.array([[1.0, 3.0], [10.0, 10.0]])
    values, good = decision_values(raw, held_out)
    assert values.tolist() == [(1 / 2 + 1) / 2, (4 / 2 + 2) / 2]
    assert good.tolist() == [(1 / 2 + 1) / 2, (3 / 2 + 1) / 2]
    alone, _ = decision_values(raw[:, :1], held_out)
    assert alone.tolist() == values[:1].tolist()
    single, _ = decision_values(raw[:1], held_out[:1])
    assert single.tolist() == [1.0, 4.0]


def test_p_values_by_hand():
    good = np.array([3.0, 1.0, 2.0])
    assert p_values(np.array([0.5, 2.0, 2.5, 3.5]), good).tolist() == [4 / 4, 3 / 4, 2 / 4, 1 / 4]


def test_p_values_of_good_images_are_valid():
    """At most a share p of good images may get a p-value up to p."""
    scores = np.random.default_rng(0).lognormal(size=(2000, 20))
    values = np.array([p_values(row[:1], row[1:])[0] for row in scores])
    for share in (0.05, 0.1, 0.25, 0.5):
        assert (values <= share).mean() == pytest.approx(share, abs=0.03)


def test_a_verdict_holds_images_against_held_out_ones():
    verdict = derive_verdict(np.array([[1.0, 5.0, 4.0]]), np.array([[2.0, 4.0]]))
    assert verdict.threshold == 4
    assert verdict.rejected.tolist() == [False, True, False]
    assert verdict.values.tolist() == [1, 5, 4]
    assert verdict.p_values.tolist() == pytest.approx([1, 1 / 3, 2 / 3])
