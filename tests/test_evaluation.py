"""From what a detector says of a test set to its metrics; the ensemble's normalisation over all images."""

import numpy as np
import pytest

from image_files import sample
from patchcore.calibration import Verdict
from patchcore.evaluation import ensemble_mean, measure, measure_defect_types, min_max_normalise, predictions_of
from patchcore.types import Output

DEFECTS = ("good", "good", "rust", "scratches")
MASKS = np.zeros((4, 2, 2), dtype=bool)
MASKS[2:, 0, 0] = True
MAPS = np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2)


def output(*members, maps=MAPS, **columns):
    return Output(scores=np.array(members, dtype=float), maps=np.repeat(maps, len(members), axis=0), columns=columns)


def samples(*defects):
    return [sample(f"{number}.png", defect) for number, defect in enumerate(defects)]


def test_ensemble_mean_normalises_each_member_over_all_images():
    members = np.array([[0.0, 5.0, 10.0], [3.0, 1.0, 2.0]])
    assert ensemble_mean(members).tolist() == [0.5, 0.25, 0.75]
    assert ensemble_mean(members[:1]).tolist() == [0.0, 5.0, 10.0]


def test_constant_values_normalise_to_zero():
    assert min_max_normalise(np.full(3, 7.0)).tolist() == [0.0, 0.0, 0.0]


def test_normalising_keeps_the_precision():
    assert min_max_normalise(MAPS).dtype == ensemble_mean([MAPS[0], MAPS[0]]).dtype == np.float32


def test_an_ensemble_becomes_one_score_and_one_map_per_image_and_keeps_its_raw_scores():
    # The first member's scores span 10, the second's 2; its maps are the negative of the first's.
    raw = output([0, 5, 10, 10], [3, 1, 2, 3], log_likelihood=np.arange(4.0))
    maps = np.stack([MAPS[0], -MAPS[0]])
    predictions = predictions_of(Output(scores=raw.scores, maps=maps, columns=raw.columns), samples(*DEFECTS), MASKS)
    assert predictions.scores.tolist() == [0.5, 0.25, 0.75, 1.0]
    np.testing.assert_allclose(predictions.maps, np.full((4, 2, 2), 0.5), rtol=1e-6)
    assert predictions.raw_scores is raw.scores
    assert predictions.labels.tolist() == [False, False, True, True]
    assert predictions.masks is MASKS
    assert predictions.columns == raw.columns


def test_a_single_member_stays_as_it_is():
    raw = output([7, -2, 3, 40])
    predictions = predictions_of(raw, samples(*DEFECTS), None)
    assert predictions.scores.tolist() == [7, -2, 3, 40]
    assert (predictions.maps == MAPS[0]).all()
    assert predictions.masks is None


@pytest.mark.parametrize(("count", "masks"), [(3, MASKS), (4, MASKS[:2]), (4, np.zeros((4, 3, 2), dtype=bool))])
def test_truth_that_does_not_fit_is_refused(count, masks):
    with pytest.raises(ValueError, match=r"rows for|differ in shape"):
        predictions_of(output([1, 2, 3, 4]), samples(*DEFECTS[:count]), masks)


VERDICT = Verdict(
    values=np.array([1.0, 3, 2, 4]),
    threshold=2.5,
    rejected=np.array([False, True, False, True]),
    p_values=np.full(4, 0.5),
    rate=0.05,
)


def test_metrics_and_what_a_threshold_does_by_hand():
    predictions = predictions_of(output([1, 3, 2, 4]), samples(*DEFECTS), MASKS)
    row = measure(predictions, VERDICT, "plate")
    # Of the four pairs of a good and a defective image only (3, 2) is the wrong way round.
    assert row["instance_auroc"] == 3 / 4
    # Defect pixels 8 and 12: above 8 of the 14 others, and above all but the three of their own image.
    assert row["full_pixel_auroc"] == pytest.approx((8 + 11) / (2 * 14))
    assert row["anomaly_pixel_auroc"] == pytest.approx((0 + 3) / (2 * 6))
    assert (row["threshold"], row["defects_caught"], row["false_rejects"]) == (2.5, 0.5, 0.5)
    assert "threshold" not in measure(predictions, None, "plate")
    by_type = measure_defect_types(predictions, VERDICT)
    assert list(by_type) == ["rust", "scratches"]
    assert by_type["rust"]["instance_auroc"] == 1 / 2
    assert by_type["scratches"]["instance_auroc"] == 1
    assert [by_type[name]["defects_caught"] for name in by_type] == [0, 1]
    assert np.isnan(measure_defect_types(predictions, None)["rust"]["defects_caught"])


@pytest.mark.parametrize(
    ("defects", "masks", "said", "undefined"),
    [
        (("good",) * 4, MASKS, "all test images are good", "instance_auroc"),
        (("rust",) * 4, MASKS, "all test images are defective", "instance_auroc"),
        (DEFECTS, None, "no ground-truth masks", "full_pixel_auroc"),
        (DEFECTS, np.zeros_like(MASKS), "no defect pixel in the test masks", "full_pixel_auroc"),
    ],
)
def test_what_is_undefined_is_nan_and_said(defects, masks, said, undefined, caplog):
    row = measure(predictions_of(output([1, 3, 2, 4]), samples(*defects), masks), None, "plate")
    assert np.isnan(row[undefined])
    assert [record.message for record in caplog.records if f"plate: {said}" in record.message]
