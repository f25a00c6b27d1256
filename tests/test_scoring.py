import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from golden import GOLDEN, needs_golden
from patchcore.scoring import anomaly_maps, image_scores, patch_scores


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
