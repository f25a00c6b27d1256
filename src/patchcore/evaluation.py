"""Predictions and truth -> metrics. Here, and only here, a score meets the others of its test set."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patchcore import metrics
from patchcore.calibration import Verdict
from patchcore.results import columns
from patchcore.types import Output, Predictions, Sample

log = logging.getLogger(__name__)


def min_max_normalise(values: NDArray) -> NDArray:
    """Scale an array to [0, 1] by its own extremes, as the original does over a whole test set; 0 if constant.

    This looks at all test scores at once, so it may order and show them but must not set thresholds.
    """
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros_like(values)
    return (values - low) / (high - low)


def ensemble_mean(members: Sequence[NDArray] | NDArray) -> NDArray:
    """Mean of the members' min-max normalised scores or maps; a single member stays as it is."""
    if len(members) == 1:
        return members[0]
    mean = min_max_normalise(members[0])
    for member in members[1:]:
        mean = mean + min_max_normalise(member)
    return mean / np.asarray(len(members), dtype=mean.dtype)


def predictions_of(output: Output, samples: Sequence[Sample], masks: NDArray[np.bool_] | None) -> Predictions:
    """Lay the truth beside what a detector says of a test set; an ensemble becomes one score and one map per image."""
    return Predictions(
        scores=ensemble_mean(output.scores),
        maps=ensemble_mean(output.maps),
        raw_scores=output.scores,
        labels=np.array([sample.is_defective for sample in samples]),
        masks=masks,
        samples=tuple(samples),
        columns=output.columns,
    )


def measure(predictions: Predictions, verdict: Verdict | None, category: str) -> dict[str, float]:
    """The metrics of a category by column, the study's three first, and what the threshold does if there is one."""
    images = metrics.image_metrics(predictions.scores, predictions.labels)
    pixels = metrics.pixel_metrics(predictions.maps, predictions.masks, predictions.labels)
    if predictions.labels.all() or not predictions.labels.any():
        only = "defective" if predictions.labels.all() else "good"
        log.warning("%s: all test images are %s, so image metrics are undefined (nan)", category, only)
    if predictions.masks is None:
        log.warning("%s: no ground-truth masks, so pixel metrics are undefined (nan)", category)
    elif not predictions.masks.any():
        log.warning("%s: no defect pixel in the test masks, so pixel metrics are undefined (nan)", category)
    measured = {
        columns.IMAGE_AUROC: images.auroc,
        columns.PIXEL_AUROC: pixels.auroc,
        columns.DEFECTIVE_PIXEL_AUROC: pixels.anomaly_auroc,
        "image_ap": images.ap,
        "image_f1max": images.f1max,
        "pixel_ap": pixels.ap,
        "pixel_f1max": pixels.f1max,
        "aupro": pixels.aupro,
    }
    if verdict is not None:
        rejected, labels = verdict.rejected, predictions.labels
        measured |= {
            columns.THRESHOLD: verdict.threshold,
            columns.DEFECTS_CAUGHT: _share(rejected[labels]),
            columns.FALSE_REJECTS: _share(rejected[~labels]),
            columns.STATED_RATE: verdict.rate,
        }
    return measured


def measure_defect_types(predictions: Predictions, verdict: Verdict | None) -> dict[str, dict[str, float]]:
    """How each kind of defect is told from the good images, and its pixels from the normal ones around them."""
    defects = np.array([sample.defect for sample in predictions.samples])
    measured = {}
    for defect in sorted(set(defects[predictions.labels])):
        chosen = defects == defect
        compared = chosen | ~predictions.labels
        pixels = float("nan")
        if predictions.masks is not None:
            pixels = metrics.auroc(predictions.maps[chosen], predictions.masks[chosen])
        measured[str(defect)] = {
            columns.IMAGES: int(chosen.sum()),
            columns.IMAGE_AUROC: metrics.auroc(predictions.scores[compared], predictions.labels[compared]),
            columns.DEFECTIVE_PIXEL_AUROC: pixels,
            columns.DEFECTS_CAUGHT: float("nan") if verdict is None else _share(verdict.rejected[chosen]),
        }
    return measured


def _share(chosen: NDArray[np.bool_]) -> float:
    return float(chosen.mean()) if len(chosen) else float("nan")
