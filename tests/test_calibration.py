import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom

from patchcore.calibration import PIXEL_LEVELS, Calibration, clopper_pearson

PIXELS = np.arange(5.0)


def calibration(*scores, kind="leave_one_out", pixels=PIXELS):
    return Calibration(kind=kind, scores=np.array(scores, dtype=float), pixels=np.array(pixels))


def test_p_values_by_hand():
    found = calibration([3, 1, 2]).p_values([[0.5, 2.0, 2.5, 3.5]])
    assert found.tolist() == [4 / 4, 3 / 4, 2 / 4, 1 / 4]


def test_the_threshold_is_the_score_above_which_p_values_reach_the_rate():
    scores = np.random.default_rng(0).integers(0, 12, 60).astype(float)  # with ties
    calibrated = calibration(scores)
    new = np.linspace(-1, 13, 200)[None]
    for rate in (0.02, 0.05, 0.1, 0.2, 0.5, 10 / 61, 0.99):
        verdict = calibrated.judge(new, rate)
        assert verdict.rejected.tolist() == (calibrated.p_values(new) <= rate).tolist()
        assert verdict.rejected.tolist() == (new[0] > calibrated.threshold(rate)).tolist()
        assert verdict.rate == rate


@pytest.mark.parametrize(("images", "asked", "allowed"), [(1, 0.05, 1 / 2), (10, 0.05, 1 / 11), (19, 0.05, 0.05)])
def test_few_images_allow_no_smaller_rate(images, asked, allowed):
    calibrated = calibration(np.arange(images))
    verdict = calibrated.judge([[images - 1, images]], asked)
    assert verdict.rate == pytest.approx(allowed)
    assert verdict.rejected.tolist() == [False, True]  # above all of them, and no sooner


@pytest.mark.parametrize("rate", [0, 1, -0.1, math.nan])
def test_a_rate_is_a_share(rate):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        calibration([1, 2]).judge([[1.0]], rate)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("images", [10, 50])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_good_images_are_rejected_at_the_stated_rate(members, images, shared):
    """Whatever the distribution, and however dependent the members are."""
    generator = np.random.default_rng(0)
    rates, trials = (1 / (images + 1), 0.1, 0.25), 4000
    counts = np.zeros(3)
    for _ in range(trials):
        both = generator.standard_normal((1, images + 1))
        own = generator.standard_normal((members, images + 1))
        scores = np.exp(math.sqrt(shared) * both + math.sqrt(1 - shared) * own)
        p = calibration(*scores[:, :-1]).p_values(scores[:, -1:])[0]
        counts += [p <= rate for rate in rates]
    for count, rate in zip(counts, rates, strict=True):
        reachable = math.floor(rate * (images + 1) + 1e-9) / (images + 1)  # without ties just so many are rejected
        low, high = binom.interval(0.9999, trials, reachable)
        assert count <= high
        assert count >= low or members > 1  # ranks of members may tie


def test_an_image_above_all_others_in_every_member_has_the_least_p_value():
    calibrated = calibration([1, 2, 9], [3, 1, 9])  # one good image is the highest in both members
    assert calibrated.p_values([[10.0], [10.0]]).tolist() == [1 / 4]
    assert calibrated.p_values([[0.0], [0.0]]).tolist() == [1.0]


def test_members_are_combined_by_fishers_statistic_of_their_ranks():
    calibrated = calibration([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    # With the new image (2.5, 25) the p-values times 4 are: members' ranks from above of the three and of itself.
    first, second = [4, 3, 1, 2], [4, 1, 3, 2]
    statistic = [-math.log(a * b) for a, b in zip(first, second, strict=True)]
    expected = sum(value >= statistic[3] - 1e-12 for value in statistic) / 4
    assert calibrated.p_values([[2.5], [25.0]]).tolist() == [expected]


def test_of_an_ensemble_one_image_is_judged_as_among_many():
    generator = np.random.default_rng(0)
    calibrated = calibration(*generator.standard_normal((3, 30)))
    new = generator.standard_normal((3, 50)) + 1
    whole = calibrated.judge(new, 0.1)
    assert calibrated.threshold(0.1) is None
    assert whole.rejected.tolist() == (whole.p_values <= 0.1).tolist() == (whole.values > whole.threshold).tolist()
    assert 0 < whole.rejected.sum() < 50
    for i in range(50):
        alone = calibrated.judge(new[:, i : i + 1], 0.1)
        assert (alone.p_values[0], alone.rejected[0]) == (whole.p_values[i], whole.rejected[i])
    for order in ([0, 1, 2], [2, 0, 1]):
        again = calibration(*calibrated.scores[order]).p_values(new[order])
        assert again.tolist() == whole.p_values.tolist()


@pytest.mark.parametrize("members", [1, 3])
def test_the_last_digits_of_a_score_decide_nothing(members):
    generator = np.random.default_rng(0)
    calibrated = calibration(*generator.standard_normal((members, 19)))
    again = calibrated.scores * (1 + 1e-6 * generator.choice([-1, 1], calibrated.scores.shape))
    for rate in (0.05, 0.25, 0.5):
        exact, moved = calibrated.judge(calibrated.scores, rate), calibrated.judge(again, rate)
        assert moved.rejected.tolist() == exact.rejected.tolist()
        assert moved.p_values.tolist() == exact.p_values.tolist()


@pytest.mark.parametrize("members", [1, 2])
def test_a_score_that_is_no_number_is_rejected(members):
    calibrated = calibration(*[range(40)] * members)
    assert calibrated.judge(np.full((members, 1), np.nan), 0.05).rejected.tolist() == [True]


def test_scores_of_other_members_are_refused():
    with pytest.raises(ValueError, match="scores of 2 members"):
        calibration([1, 2], [3, 4]).p_values([[1.0]])


def test_suspects_stand_far_above_the_median():
    scores = [10, 11, 12, 13, 14, 15, 16, 17, 18, 60, 40]
    calibrated = calibration(scores)
    # Median 15, median absolute deviation 3.
    assert calibrated.outlyingness()[9] == pytest.approx((60 - 15) / (1.4826 * 3))
    assert calibrated.suspects() == [9, 10]
    assert calibration([-x for x in scores]).suspects() == []  # far below is no suspicion
    shifted = calibration([3 * x - 100 for x in scores])
    assert shifted.suspects() == [9, 10]
    assert calibration([5] * 10 + [90]).suspects() == []  # no spread to measure by
    assert calibration([10, 11, 12, 13, 14, 15, 16, 17, 90]).suspects() == []  # too few


def test_pixels_set_the_regions_and_the_colours():
    calibrated = calibration([1, 2], pixels=[10, 20, 30, 50, 70])
    assert PIXEL_LEVELS[3] == 0.999
    assert calibrated.pixel_threshold == 50
    assert calibrated.heat_ends == (10, 90)


def test_a_calibration_comes_back_from_plain_values():
    calibrated = calibration([0.1, 1 / 3], [2, 3], kind="folds")
    again = Calibration.from_plain(calibrated.to_plain())
    assert again.to_plain() == calibrated.to_plain()
    assert (again.kind, len(again), again.scores.tolist()) == ("folds", 2, [[0.1, 1 / 3], [2, 3]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "guess"}, "kind must be one of"),
        ({"scores": [[1.0, math.nan]]}, "scores must be finite"),
        ({"scores": [1.0, 2.0]}, "scores must be numbers in 2 dimensions"),
        ({"scores": []}, "scores must be numbers in 2 dimensions"),
        ({"scores": [["1"]]}, "lists of numbers"),
        ({"scores": [[True]]}, "lists of numbers"),
        ({"scores": [[1.0], [1.0, 2.0]]}, "as long"),
        ({"pixels": [5, 4, 3, 2, 1]}, "ascending"),
        ({"pixels": [1, 2]}, "ascending"),
        ({"more": 1}, "no 'more'"),
    ],
)
def test_damaged_values_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Calibration.from_plain(calibration([1, 2]).to_plain() | changed)


def test_clopper_pearson_intervals():
    assert clopper_pearson(0, 26) == (0, pytest.approx(1 - 0.025 ** (1 / 26)))
    assert clopper_pearson(26, 26) == (pytest.approx(0.025 ** (1 / 26)), 1)
    low, high = clopper_pearson(7, 20)
    # By definition: at the ends of the interval so many or more, and so few or less, have a probability of 2.5 %.
    assert binom.sf(6, 20, low) == pytest.approx(0.025)
    assert binom.cdf(7, 20, high) == pytest.approx(0.025)
    assert clopper_pearson(0, 0) == (0, 1)
    ends = [clopper_pearson(count, 9) for count in range(10)]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(ends[1:9]))
    with pytest.raises(ValueError, match="from 0 to 3"):
        clopper_pearson(4, 3)
