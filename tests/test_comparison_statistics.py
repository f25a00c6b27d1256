"""The bootstrap against a plain one, and who is said to lead."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hand_made import BANK, DEFECTIVE, FLOW, FLOW_RUN, GOOD, write_run
from patchcore.comparison.recommendations import recommend
from patchcore.comparison.runs import find_runs
from patchcore.comparison.statistics import (
    AUROCS,
    RESAMPLES,
    compare,
    difference,
    draw,
    draw_seeds,
    resampled,
    standing,
)
from patchcore.comparison.study import SeedMean, studies_of
from patchcore.comparison.table import format_interval
from patchcore.comparison.tables import costs_table
from patchcore.metrics import RankedPairs, image_pairs, pixel_pairs

LABELS = np.arange(GOOD + DEFECTIVE) >= GOOD


def study_of(root):
    runs, problems = find_runs(root)
    (study,) = studies_of(runs, problems)
    return study


def test_images_are_drawn_within_their_class():
    weights = draw(LABELS, np.random.default_rng(0))
    assert weights.shape == (RESAMPLES, len(LABELS))
    assert (weights[:, LABELS].sum(axis=1) == DEFECTIVE).all()
    assert (weights[:, ~LABELS].sum(axis=1) == GOOD).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)


def test_resampled_image_auroc_is_that_of_the_repeated_images():
    scores = np.random.default_rng(1).normal(size=len(LABELS)).round(1) + LABELS
    weights = draw(LABELS, np.random.default_rng(2))[:20]
    expected = [roc_auc_score(np.repeat(LABELS, w.astype(int)), np.repeat(scores, w.astype(int))) for w in weights]
    np.testing.assert_allclose(resampled(image_pairs(scores, LABELS), LABELS, weights), expected, atol=1e-12)


def test_resampled_pixel_auroc_is_that_of_the_repeated_images():
    rng = np.random.default_rng(3)
    labels = np.array([False, False, True, True, True])
    masks = np.zeros((5, 16, 16), dtype=bool)
    masks[labels, 4:10, 4:8] = True
    maps = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    weights = draw(labels, rng)[:20]
    compared = masks.copy()
    compared[:, ::2, ::2] = True  # all defect pixels, every second normal one
    chosen = [np.repeat(np.arange(5), w.astype(int)) for w in weights]
    expected = [roc_auc_score(masks[c][compared[c]], maps[c][compared[c]]) for c in chosen]
    pairs = pixel_pairs(maps, masks, labels)
    np.testing.assert_allclose(resampled(pairs, labels, weights), expected, atol=1e-3)


def means(**values):
    return {name: SeedMean(mean, float("nan"), 1) for name, mean in values.items()}


def spread(mean, width):
    """Samples that rise evenly from `mean` - `width` to `mean` + `width`."""
    return mean + np.linspace(-width, width, 101)


def test_best_is_who_is_clearly_ahead_of_all():
    samples = {"a": spread(0.9, 0), "b": spread(0.8, 0.05), "c": spread(0.7, 0.05)}
    found = standing(means(a=0.9, b=0.8, c=0.7), samples)
    assert (found.kind, found.leaders) == ("best", ("a",))


def test_who_cannot_be_told_from_the_highest_leads_with_it():
    samples = {"a": spread(0.9, 0), "b": spread(0.8, 0.15), "c": spread(0.7, 0.05)}
    found = standing(means(c=0.7, b=0.8, a=0.9), samples)
    assert (found.kind, found.leaders) == ("unclear", ("a", "b"))


def test_what_prints_the_same_is_a_tie_however_sure():
    samples = {"a": spread(0.9004, 0), "b": spread(0.8996, 0)}
    found = standing(means(a=0.9004, b=0.8996), samples)
    assert (found.kind, found.leaders) == ("tie", ("a", "b"))
    assert standing(means(a=0.9006, b=0.9004), samples).kind != "tie"  # 0.901 and 0.900


def test_without_scores_nobody_is_clearly_behind():
    assert standing(means(a=0.9, b=0.1), {"a": spread(0.9, 0)}).kind == "unclear"


def test_an_undefined_figure_takes_no_part():
    assert standing(means(a=0.9, b=float("nan")), {"a": spread(0.9, 0)}).kind == "alone"


def test_undefined_resamples_do_not_count():
    some = {"a": np.where(np.arange(101) < 5, np.nan, 0.9), "b": spread(0.899, 0.05)}
    found = difference("a", "b", means(a=0.9, b=0.8), some)
    assert np.isfinite([found.low, found.high]).all()
    assert not found.clear
    assert standing(means(a=0.9, b=0.8), some).kind == "unclear"
    for undefined, clear, printed in ((50, True, "[+0.800, +0.800]"), (51, False, "[undefined]")):
        samples = {"a": np.where(np.arange(100) < undefined, np.nan, 0.9), "b": np.full(100, 0.1)}
        found = difference("a", "b", means(a=0.9, b=0.1), samples)
        assert (found.clear, format_interval(found.low, found.high)) == (clear, printed)


def test_an_auroc_without_positives_is_undefined_without_a_warning():
    pairs = RankedPairs(won=np.zeros((1, 2)), positives=np.zeros(1), negatives=np.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(resampled(pairs, np.array([False, True]), np.ones((3, 2)))).all()


def test_an_interval_on_the_other_side_of_0_makes_nobody_best():
    samples = {"a": spread(0.8, 0.01), "b": spread(0.9, 0.01)}
    assert standing(means(a=0.9, b=0.89), samples).kind == "unclear"


def test_who_has_no_scores_counts_as_a_rival():
    """The interval is as wide for a rival without scores as for one with them."""
    samples = {"a": spread(1, 0.5), "b": np.zeros(101)}
    alone = difference("a", "b", means(a=1, b=0), samples)
    beside = difference("a", "b", means(a=1, b=0, c=0.1), samples)
    assert beside.high - beside.low > alone.high - alone.low


@pytest.mark.parametrize("count", [2, 3, 5])
def test_drawn_seeds_have_the_variance_of_their_mean(count):
    values = np.random.default_rng(0).normal(size=count)
    drawn = draw_seeds(count, np.random.default_rng(1)) @ values
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.05)
    assert drawn.var() == pytest.approx(values.var(ddof=1) / count, rel=0.1)


def test_one_seed_is_taken_as_it_is():
    assert (draw_seeds(1, np.random.default_rng(0)) == 1).all()


def width(line):
    (found,) = line.differences
    return found.high - found.low


def test_a_seed_that_is_bad_everywhere_is_bad_in_the_average(tmp_path):
    """Seeds that differ alike in both categories do not average out, as independent draws by category would have it."""
    for seed, quality in enumerate((-3, 5)):
        write_run(tmp_path / f"wild{seed}", seed=seed, quality=quality)
        write_run(tmp_path / f"blind{seed}", seed=seed, quality=0, config=FLOW_RUN)
    plate, bracket, average = compare(study_of(tmp_path), "instance_auroc")
    assert width(average) > 0.95 * min(width(plate), width(bracket))


def test_the_average_is_that_of_all_categories(tmp_path):
    """One method leads by far in one category and lags by as much in the other: on average it is no better."""
    write_run(tmp_path / "a", categories=("plate",), quality=6)
    write_run(tmp_path / "b", categories=("plate",), quality=0, config=FLOW_RUN)
    write_run(tmp_path / "c", categories=("bracket",), quality=0)
    write_run(tmp_path / "d", categories=("bracket",), quality=6, config=FLOW_RUN)
    lines = compare(study_of(tmp_path), "instance_auroc")
    assert [line.standing.kind for line in lines[:2]] == ["best", "best"]
    assert lines[-1].standing.kind != "best"
    assert abs(lines[-1].differences[0].difference) < 0.1
    assert lines[-1].differences[0].low <= 0 <= lines[-1].differences[0].high


def test_pixels_of_good_images_count_in_one_pixel_auroc_only(tmp_path):
    """Defective images that all score higher are told from good ones better, but from each other as before."""
    write_run(tmp_path / "sharp", categories=("plate",), quality=6)
    write_run(tmp_path / "blind", categories=("plate",), quality=0, config=FLOW_RUN)
    study = study_of(tmp_path)
    (of_defective,) = compare(study, "anomaly_pixel_auroc")[0].differences
    assert of_defective.low == pytest.approx(0, abs=1e-6)
    assert of_defective.high == pytest.approx(0, abs=1e-6)
    (of_all,) = compare(study, "full_pixel_auroc")[0].differences
    assert min(abs(of_all.low), abs(of_all.high)) > 0.05


def test_more_rivals_widen_the_intervals():
    """At 2.1 standard deviations 0 lies outside 95 % (1.96), but not outside the 97.5 % (2.24) that two rivals need."""
    rng = np.random.default_rng(0)
    gap = rng.normal(size=5000)
    gap = 2.1 + (gap - gap.mean()) / gap.std()
    samples = {"a": gap, "b": np.zeros(5000), "c": np.full(5000, -100.0)}
    assert standing(means(a=0.9, b=0.8), {name: samples[name] for name in "ab"}).kind == "best"
    assert standing(means(a=0.9, b=0.8, c=0.2), samples).leaders == ("a", "b")


def test_a_much_better_method_is_best_and_the_same_runs_give_the_same_answer(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"sharp{seed}", seed=seed, quality=6)
        write_run(tmp_path / f"blind{seed}", seed=seed, quality=0, config=FLOW_RUN)
    study = study_of(tmp_path)
    lines = compare(study, "instance_auroc")
    assert [line.standing.kind for line in lines] == ["best"] * 3
    assert lines[-1].standing.leaders == (BANK,)
    for line in lines:
        (found,) = line.differences
        assert found.low < found.difference < found.high
    assert compare(study, "instance_auroc") == lines


def test_equal_methods_have_no_winner(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", seed=seed)
        write_run(tmp_path / f"b{seed}", seed=seed + 10, config=FLOW_RUN)
    kinds = {line.standing.kind for line in compare(study_of(tmp_path), "instance_auroc")}
    assert "best" not in kinds


def test_identical_methods_tie_with_an_interval_of_nothing(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config=FLOW_RUN)
    study = study_of(tmp_path)
    for metric in AUROCS:
        for line in compare(study, metric):
            assert line.standing.kind == "tie"
            assert (line.differences[0].low, line.differences[0].high) == (0, 0)  # paired: what is equal cancels


def test_seeds_that_disagree_widen_the_interval(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "steady" / f"a{seed}", seed=seed, quality=3)
        write_run(tmp_path / "steady" / f"b{seed}", seed=seed, quality=1, config=FLOW_RUN)
        write_run(tmp_path / "wild" / f"a{seed}", seed=seed, quality=3)
        write_run(tmp_path / "wild" / f"b{seed}", seed=seed, quality=(-2, 4)[seed], config=FLOW_RUN)
    widths = []
    for name in ("steady", "wild"):
        found = compare(study_of(tmp_path / name), "instance_auroc")[-1].differences[0]
        widths.append(found.high - found.low)
    assert widths[1] > 1.5 * widths[0]


def winners(root):
    study = study_of(root)
    found = recommend(study, {metric: compare(study, metric) for metric in AUROCS})
    return {one.use: one.winner for one in found}


def test_recommendations_follow_the_numbers(tmp_path):
    cheap = {"fit_seconds": 0.5, "ms_per_image": 9.5, "model_mib": 1.9, "peak_host_mib": 100}
    write_run(tmp_path / "sharp", quality=6)
    write_run(tmp_path / "cheap", quality=0, config=FLOW_RUN, costs=cheap)
    assert winners(tmp_path) == {
        "best classification": BANK,
        "best localisation": None,  # both have 0.5
        "fastest inference": None,  # 9.5 against 10 ms is within the noise of timing
        "fastest training": FLOW,
        "least host memory": FLOW,
        "smallest model": FLOW,  # sizes are exact
    }


def test_a_cost_must_be_lower_in_every_run(tmp_path):
    for seed, steady, wild in ((0, 10.0, 2.0), (1, 10.0, 9.5)):
        write_run(tmp_path / f"steady{seed}", seed=seed, costs={"ms_per_image": steady})
        write_run(tmp_path / f"wild{seed}", seed=seed, config=FLOW_RUN, costs={"ms_per_image": wild})
    assert winners(tmp_path)["fastest inference"] is None


def test_times_with_features_from_a_cache_do_not_compare(tmp_path):
    write_run(tmp_path / "slow")
    warm = {"ms_per_image": 1.0, "fit_seconds": 0.1, "model_mib": 1.0, "cached_share": 1.0}
    write_run(tmp_path / "fast", config=FLOW_RUN, costs=warm)
    found = winners(tmp_path)
    assert found["fastest inference"] is found["fastest training"] is None
    assert found["smallest model"] == FLOW
    assert "Times do not compare: some features of fast came from a cache." in costs_table(study_of(tmp_path)).notes


def test_times_of_different_machines_do_not_compare(tmp_path):
    write_run(tmp_path / "slow")
    other = {"processor": "another", "threads": "1", "gpus": "none"}
    write_run(
        tmp_path / "fast",
        config={**FLOW_RUN, "environment": other},
        costs={"ms_per_image": 1.0, "model_mib": 1.0},
    )
    found = winners(tmp_path)
    assert found["fastest inference"] is None
    assert found["smallest model"] == FLOW


def test_a_cost_that_one_lacks_has_no_winner(tmp_path):
    write_run(tmp_path / "a", costs={"model_mib": float("nan")})
    write_run(tmp_path / "b", config=FLOW_RUN)
    assert winners(tmp_path)["smallest model"] is None


def test_a_seed_that_lacks_a_category_has_no_part_in_the_costs(tmp_path):
    write_run(tmp_path / "whole", costs={"fit_seconds": 2.0})
    write_run(tmp_path / "part", seed=1, categories=("plate",), costs={"fit_seconds": 100.0})
    (record,) = costs_table(study_of(tmp_path)).records
    assert record["fit_seconds"] == 2.0


def test_costs_are_means_over_the_categories_that_all_ran(tmp_path):
    write_run(tmp_path / "a", categories=("plate",), costs={"fit_seconds": 1.0})
    write_run(tmp_path / "b", categories=("bracket",), costs={"fit_seconds": 100.0})
    write_run(tmp_path / "c", categories=("plate",), config=FLOW_RUN)
    study = study_of(tmp_path)
    rows = study.common_rows
    assert [study.labels[row] for row in rows] == ["plate"]
    bank = next(one for one in study.contenders if one.name == BANK)
    assert bank.costs(rows, "fit_seconds") == [1.0]
