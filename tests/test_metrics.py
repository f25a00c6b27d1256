import numpy as np
import pytest
from sklearn import metrics as sk

from golden import GOLDEN, needs_golden
from patchcore.metrics import (
    aupro,
    auroc,
    image_metrics,
    image_pairs,
    pixel_metrics,
    pixel_pairs,
    region_weights,
)


def tied_case(seed: int, n: int = 5, size: int = 20):
    """Maps with many ties that know something of the masks; image 0 is good."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), dtype=bool)
    for mask in masks[1:]:
        for _ in range(rng.integers(1, 4)):
            row, column = rng.integers(0, size - 5, 2)
            mask[row : row + rng.integers(1, 5), column : column + rng.integers(1, 5)] = True
    maps = np.round(rng.normal(size=masks.shape) + masks, 1).astype(np.float32)
    return maps, masks, masks.any(axis=(1, 2))


def brute_force_aupro(maps, masks, max_fpr):
    """Every threshold in turn, every region by flood fill, the trapezoid rule up to max_fpr."""
    regions = []
    for n, mask in enumerate(masks):
        left = set(zip(*np.nonzero(mask), strict=True))
        while left:
            region, todo = [], [left.pop()]
            while todo:
                row, column = todo.pop()
                region.append((n, row, column))
                for near in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                    if near in left:
                        left.remove(near)
                        todo.append(near)
            regions.append(tuple(np.array(region).T))
    fpr, pro = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        called = maps >= threshold
        fpr.append(called[~masks].mean())
        pro.append(np.mean([called[region].mean() for region in regions]))
    end = np.interp(max_fpr, fpr, pro)
    keep = [i for i, rate in enumerate(fpr) if rate < max_fpr]
    x, y = [*(fpr[i] for i in keep), max_fpr], [*(pro[i] for i in keep), end]
    return sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1)) / max_fpr


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn_with_ties(seed):
    maps, masks, labels = tied_case(seed)
    result = pixel_metrics(maps, masks, labels)
    truth, values = masks.ravel(), maps.ravel()
    assert result.auroc == pytest.approx(sk.roc_auc_score(truth, values), abs=1e-9)
    assert result.ap == pytest.approx(sk.average_precision_score(truth, values), abs=1e-9)
    assert result.anomaly_auroc == pytest.approx(
        sk.roc_auc_score(masks[labels].ravel(), maps[labels].ravel()), abs=1e-9
    )
    precision, recall, _ = sk.precision_recall_curve(truth, values)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert result.f1max == pytest.approx(f1.max(), abs=1e-9)
    assert image_metrics(values, truth).auroc == pytest.approx(result.auroc, abs=1e-12)
    assert image_metrics(values, truth).ap == pytest.approx(result.ap, abs=1e-12)


@pytest.mark.parametrize("max_fpr", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_aupro_equals_brute_force(seed, max_fpr):
    maps, masks, labels = tied_case(seed)
    expected = brute_force_aupro(maps, masks, max_fpr)
    assert aupro(maps, masks, max_fpr=max_fpr) == pytest.approx(expected, abs=1e-9)
    if max_fpr == 0.3:
        assert pixel_metrics(maps, masks, labels).aupro == pytest.approx(expected, abs=1e-9)


def test_hand_solved_image_metrics():
    scores = np.array([1.0, 2.0, 2.0, 3.0])
    labels = np.array([False, False, True, True])
    result = image_metrics(scores, labels)
    assert result.auroc == pytest.approx(0.875)  # pairs won: 3 of 4, one tie of them counts half
    assert result.ap == pytest.approx((1 + 2 / 3) / 2)
    assert result.f1max == pytest.approx(0.8)  # at 2: two found, one false


def test_regions_weigh_the_same_whatever_their_size():
    mask = np.zeros((1, 4, 4), dtype=bool)
    mask[0, 0, 0] = True
    mask[0, 2:, 2:] = True
    mask[0, 1, 1] = True  # touches both by its corners: one region of six pixels
    assert region_weights(mask) == pytest.approx([1 / 6] * 6)
    mask[0, 1, 1] = False
    assert region_weights(mask) == pytest.approx([1 / 2] + [1 / 8] * 4)


@pytest.mark.parametrize("all_defective", [True, False])
def test_one_class_only_is_nan(all_defective):
    result = image_metrics(np.array([0.1, 0.2]), np.array([all_defective] * 2))
    assert np.isnan([result.auroc, result.ap, result.f1max]).all()


def test_pixel_metrics_without_defects_or_masks_are_nan():
    maps = np.zeros((2, 4, 4), dtype=np.float32)
    for masks in (np.zeros(maps.shape, dtype=bool), None):
        result = pixel_metrics(maps, masks, np.array([False, False]))
        assert np.isnan([result.auroc, result.anomaly_auroc, result.ap, result.f1max, result.aupro]).all()


def test_defective_pixels_everywhere_leave_anomaly_auroc_undefined():
    maps = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    masks = np.stack([np.ones((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)])
    result = pixel_metrics(maps, masks, np.array([True, False]))
    assert np.isnan(result.anomaly_auroc)
    assert result.auroc == 0.0


def test_non_finite_maps_and_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="finite"):
        image_metrics(np.array([np.nan, 1.0]), np.array([True, False]))
    with pytest.raises(ValueError, match="differ in shape"):
        aupro(np.zeros((1, 4, 4)), np.zeros((1, 4, 5), dtype=bool))
    with pytest.raises(ValueError, match="bool"):
        image_metrics(np.array([0.0, 1.0]), np.array([0, 1]))


@needs_golden
def test_golden_metrics():
    case = np.load(GOLDEN / "metrics_small.npz")
    labels, masks = case["labels"].astype(bool), case["masks"].astype(bool)
    assert image_metrics(case["image_scores"], labels).auroc == pytest.approx(float(case["instance_auroc"]), abs=1e-9)
    result = pixel_metrics(case["maps"], masks, labels)
    assert result.auroc == pytest.approx(float(case["full_pixel_auroc"]), abs=1e-9)
    assert result.anomaly_auroc == pytest.approx(float(case["anomaly_pixel_auroc"]), abs=1e-9)
    called = case["maps"] >= case["optimal_threshold"]  # no threshold gives a higher F1
    assert result.f1max == pytest.approx(sk.f1_score(masks.ravel(), called.ravel()), abs=1e-9)


def auroc_of(pairs):
    return pairs.won.sum() / np.outer(pairs.positives, pairs.negatives).sum()


def test_auroc_is_that_of_scikit_learn_and_undefined_without_a_class():
    maps, masks, _ = tied_case(0)
    assert auroc(maps, masks) == pytest.approx(sk.roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert np.isnan(auroc(maps[:1], masks[:1]))


def test_pairs_of_images_by_hand():
    scores, labels = np.array([1.0, 3.0, 2.0, 3.0]), np.array([False, True, True, False])
    pairs = image_pairs(scores, labels)
    np.testing.assert_array_equal(pairs.won, [[1, 0, 0, 0.5], [1, 0, 0, 0]])
    np.testing.assert_array_equal(pairs.negatives, [1, 0, 0, 1])
    assert auroc_of(pairs) == image_metrics(scores, labels).auroc == 2.5 / 4


def test_pairs_of_pixels_give_pixel_auroc_of_any_choice_of_images():
    maps, masks, labels = (array.repeat(2, -1).repeat(2, -2) if array.ndim > 1 else array for array in tied_case(3))
    pairs = pixel_pairs(maps, masks, labels, levels=4096)
    assert auroc_of(pairs) == pytest.approx(pixel_metrics(maps, masks, labels).auroc, abs=1e-3)
    chosen = [0, 2, 2, 4]  # image 2 twice, images 1 and 3 not at all
    expected = sk.roc_auc_score(masks[chosen].ravel(), maps[chosen].ravel())
    weights = np.bincount(chosen, minlength=len(maps))
    won = weights[labels] @ pairs.won @ weights
    assert won / (weights[labels] @ pairs.positives * (weights @ pairs.negatives)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("levels", [16, 1024])
def test_levels_bound_the_error_of_pairs_of_pixels(levels):
    rng = np.random.default_rng(levels)
    masks = np.zeros((4, 64, 64), dtype=bool)
    masks[1:, 10:40, 10:40] = True
    maps = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    labels = masks.any(axis=(1, 2))
    normal = np.zeros_like(masks)
    normal[:, ::2, ::2] = True
    compared = masks | normal
    exact = auroc(maps[compared], masks[compared])
    assert auroc_of(pixel_pairs(maps, masks, labels, levels=levels)) == pytest.approx(exact, abs=0.5 / levels)
