"""The bootstrap against a plain one, and who is said to lead."""

import numpy as np
from sklearn.metrics import roc_auc_score

from hand_made import DEFECTIVE, FASTFLOW_RUN, GOOD, write_run
from patchcore.comparison.costs import common_rows, per_run
from patchcore.comparison.recommendations import recommend
from patchcore.comparison.runs import find_runs
from patchcore.comparison.statistics import AUROCS, RESAMPLES, draw, judge, resampled, verdict
from patchcore.comparison.study import Figure, studies_of
from patchcore.metrics import image_pairs, pixel_pairs

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


def figures(**means):
    return {name: Figure(mean, float("nan"), 1) for name, mean in means.items()}


def spread(mean, width):
    """Samples that rise evenly from `mean` - `width` to `mean` + `width`."""
    return mean + np.linspace(-width, width, 101)


def test_best_is_who_is_clearly_ahead_of_all():
    samples = {"a": spread(0.9, 0), "b": spread(0.8, 0.05), "c": spread(0.7, 0.05)}
    found = verdict(figures(a=0.9, b=0.8, c=0.7), samples)
    assert (found.kind, found.leaders) == ("best", ("a",))


def test_who_cannot_be_told_from_the_highest_leads_with_it():
    samples = {"a": spread(0.9, 0), "b": spread(0.8, 0.15), "c": spread(0.7, 0.05)}
    found = verdict(figures(c=0.7, b=0.8, a=0.9), samples)
    assert (found.kind, found.leaders) == ("unclear", ("a", "b"))


def test_what_prints_the_same_is_a_tie_however_sure():
    samples = {"a": spread(0.9004, 0), "b": spread(0.8996, 0)}
    found = verdict(figures(a=0.9004, b=0.8996), samples)
    assert (found.kind, found.leaders) == ("tie", ("a", "b"))
    assert verdict(figures(a=0.9006, b=0.9004), samples).kind != "tie"  # 0.901 and 0.900


def test_without_scores_nobody_is_clearly_behind():
    assert verdict(figures(a=0.9, b=0.1), {"a": spread(0.9, 0)}).kind == "unclear"


def test_an_undefined_figure_takes_no_part():
    assert verdict(figures(a=0.9, b=float("nan")), {"a": spread(0.9, 0)}).kind == "alone"


def test_more_rivals_widen_the_intervals():
    """At 2.1 standard deviations 0 lies outside 95 % (1.96), but not outside the 97.5 % (2.24) that two rivals need."""
    rng = np.random.default_rng(0)
    gap = rng.normal(size=5000)
    gap = 2.1 + (gap - gap.mean()) / gap.std()
    samples = {"a": gap, "b": np.zeros(5000), "c": np.full(5000, -100.0)}
    assert verdict(figures(a=0.9, b=0.8), {name: samples[name] for name in "ab"}).kind == "best"
    assert verdict(figures(a=0.9, b=0.8, c=0.2), samples).leaders == ("a", "b")


def test_a_much_better_method_is_best_and_the_same_runs_give_the_same_answer(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"sharp{seed}", seed=seed, quality=6)
        write_run(tmp_path / f"blind{seed}", seed=seed, quality=0, config=FASTFLOW_RUN)
    study = study_of(tmp_path)
    lines = judge(study, "instance_auroc")
    assert [line.verdict.kind for line in lines] == ["best"] * 3
    assert lines[-1].verdict.leaders == ("PatchCore efficientnet_lite0, 224 px, 10 %",)
    for line in lines:
        (found,) = line.differences
        assert found.low < found.value < found.high
    assert judge(study, "instance_auroc") == lines


def test_equal_methods_have_no_winner(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", seed=seed)
        write_run(tmp_path / f"b{seed}", seed=seed + 10, config=FASTFLOW_RUN)
    kinds = {line.verdict.kind for line in judge(study_of(tmp_path), "instance_auroc")}
    assert "best" not in kinds


def test_identical_methods_tie_with_an_interval_of_nothing(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config=FASTFLOW_RUN)
    study = study_of(tmp_path)
    for metric in AUROCS:
        for line in judge(study, metric):
            assert line.verdict.kind == "tie"
            assert (line.differences[0].low, line.differences[0].high) == (0, 0)  # paired: what is equal cancels


def test_seeds_that_disagree_widen_the_interval(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "steady" / f"a{seed}", seed=seed, quality=3)
        write_run(tmp_path / "steady" / f"b{seed}", seed=seed, quality=1, config=FASTFLOW_RUN)
        write_run(tmp_path / "wild" / f"a{seed}", seed=seed, quality=3)
        write_run(tmp_path / "wild" / f"b{seed}", seed=seed, quality=(-2, 4)[seed], config=FASTFLOW_RUN)
    widths = []
    for name in ("steady", "wild"):
        found = judge(study_of(tmp_path / name), "instance_auroc")[-1].differences[0]
        widths.append(found.high - found.low)
    assert widths[1] > 1.5 * widths[0]


def winners(root):
    study = study_of(root)
    found = recommend(study, {metric: judge(study, metric) for metric in AUROCS})
    return {one.use: one.winner for one in found}


def test_recommendations_follow_the_numbers(tmp_path):
    cheap = {"fit_seconds": 0.5, "ms_per_image": 9.5, "model_mib": 1.9, "peak_host_mib": 100}
    write_run(tmp_path / "sharp", quality=6)
    write_run(tmp_path / "cheap", quality=0, config=FASTFLOW_RUN, costs=cheap)
    flow = "FastFlow resnet18, 224 px"
    assert winners(tmp_path) == {
        "best classification": "PatchCore efficientnet_lite0, 224 px, 10 %",
        "best localisation": None,  # both have 0.5
        "fastest inference": None,  # 9.5 against 10 ms is within the noise of timing
        "fastest training": flow,
        "least host memory": flow,
        "smallest model": flow,  # sizes are exact
    }


def test_times_of_different_machines_do_not_compare(tmp_path):
    write_run(tmp_path / "slow")
    other = {"processor": "another", "threads": "1", "gpus": "none"}
    write_run(
        tmp_path / "fast",
        config={**FASTFLOW_RUN, "environment": other},
        costs={"ms_per_image": 1.0, "model_mib": 1.0},
    )
    found = winners(tmp_path)
    assert found["fastest inference"] is None
    assert found["smallest model"] == "FastFlow resnet18, 224 px"


def test_a_cost_that_one_lacks_has_no_winner(tmp_path):
    write_run(tmp_path / "a", costs={"model_mib": float("nan")})
    write_run(tmp_path / "b", config=FASTFLOW_RUN)
    assert winners(tmp_path)["smallest model"] is None


def test_costs_are_means_over_the_categories_that_all_ran(tmp_path):
    write_run(tmp_path / "a", categories=("plate",), costs={"fit_seconds": 1.0})
    write_run(tmp_path / "b", categories=("bracket",), costs={"fit_seconds": 100.0})
    write_run(tmp_path / "c", categories=("plate",), config=FASTFLOW_RUN)
    study = study_of(tmp_path)
    rows = common_rows(study)
    assert [study.labels[row] for row in rows] == ["plate"]
    patchcore = next(method for method in study.methods if method.name.startswith("PatchCore"))
    assert per_run(patchcore, rows, "fit_seconds") == [1.0]
