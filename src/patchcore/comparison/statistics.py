"""Which method is better, as far as the test images can tell: a paired bootstrap of AUROC over images.

All methods of a study are scored on the same resampled test images, so that what an easy or hard image does to all of
them cancels in their difference. Good and defective images are drawn separately, each as often as there are such
images; seeds are drawn as well. A difference is clear if its interval lies above 0 and the two values also differ as
printed. The intervals of the highest method of a line against all others hold jointly with 95 % (Bonferroni).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchcore.comparison.runs import Row, Run
from patchcore.comparison.study import SeedMean, Study
from patchcore.metrics import RankedPairs, image_pairs
from patchcore.results.columns import DEFECTIVE_PIXEL_AUROC, IMAGE_AUROC, PIXEL_AUROC

RESAMPLES = 5000
CONFIDENCE = 0.95
DECIMALS = 3  # of every AUROC in the tables, as in the study
AUROCS = (IMAGE_AUROC, PIXEL_AUROC, DEFECTIVE_PIXEL_AUROC)

Samples = dict[str, NDArray[np.float64]]  # name of a contender -> (RESAMPLES,) AUROCs


@dataclass(frozen=True)
class Difference:
    """By how much `first` exceeds `second`, with the interval of the bootstrap: nan where it is undefined."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    clear: bool


@dataclass(frozen=True)
class Standing:
    """Who leads a line of a table.

    Attributes:
        kind: "best" if one method is clearly ahead of all others, "tie" if the values of the leaders print the
            same, "unclear" if the data do not tell them apart, "alone" with fewer than two methods.
        leaders: the one with the highest value, then those that are not clearly behind it.
    """

    kind: str
    leaders: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table of AUROCs, compared."""

    row: Row | None
    means: dict[str, SeedMean]
    standing: Standing
    differences: tuple[Difference, ...]


def compare(study: Study, metric: str, *, seed: int = 0) -> list[Line]:
    """Compare the methods of a study in every line by one of `AUROCS`."""
    samples = _bootstrap(study, metric, np.random.default_rng(seed))
    lines = []
    for row in study.lines:
        means = study.means(row, metric)
        pairs = itertools.combinations(ranked(means), 2)
        differences = [difference(first, second, means, samples[row]) for first, second in pairs]
        known = tuple(found for found in differences if found is not None)
        lines.append(Line(row=row, means=means, standing=standing(means, samples[row]), differences=known))
    return lines


def ranked(means: Mapping[str, SeedMean]) -> list[str]:
    """The contenders that have a mean, the highest first."""
    known = [name for name, value in means.items() if not math.isnan(value.mean)]
    return sorted(known, key=lambda name: -means[name].mean)


def difference(
    first: str, second: str, means: Mapping[str, SeedMean], samples: Mapping[str, NDArray[np.float64]]
) -> Difference | None:
    """Compare a method with a lower one; None where the runs of one kept no scores to resample.

    Resamples in which an AUROC is undefined, as without any defect pixel, do not count; where fewer than half of them
    remain, the interval is nan and nothing is clear.
    """
    if first not in samples or second not in samples:
        return None
    rivals = max(1, len(ranked(means)) - 1)
    tail = (1 - CONFIDENCE) / rivals / 2
    gaps = samples[first] - samples[second]
    defined = gaps[np.isfinite(gaps)]
    low, high = np.quantile(defined, [tail, 1 - tail]) if 2 * len(defined) >= len(gaps) else (math.nan, math.nan)
    tied = _printed(means[first]) == _printed(means[second])
    value = means[first].mean - means[second].mean
    return Difference(first, second, value, float(low), float(high), not tied and bool(low > 0))


def standing(means: Mapping[str, SeedMean], samples: Mapping[str, NDArray[np.float64]]) -> Standing:
    """Say who leads; a rival that cannot be compared with the best for want of scores counts as not clearly behind."""
    order = ranked(means)
    if len(order) < 2:
        return Standing("alone", tuple(order))
    best, *rivals = order
    compared = {rival: difference(best, rival, means, samples) for rival in rivals}
    level = [rival for rival, found in compared.items() if found is None or not found.clear]
    if not level:
        return Standing("best", (best,))
    tied = all(_printed(means[rival]) == _printed(means[best]) for rival in level)
    return Standing("tie" if tied else "unclear", (best, *level))


def _printed(value: SeedMean) -> str:
    return f"{value.mean:.{DECIMALS}f}"


def _bootstrap(study: Study, metric: str, generator: np.random.Generator) -> dict[Row | None, Samples]:
    """AUROCs of every method on the same resampled images, by line; only methods all of whose runs kept scores."""
    samples: dict[Row | None, Samples] = {}
    seeds: dict[tuple[object, ...], NDArray[np.float64]] = {}  # a run that stands behind several rows is drawn for all
    for row in study.rows:
        samples[row] = {}
        weights = None
        for contender in study.contenders:
            runs = contender.runs_of(row)
            pairs = [found for run in runs if (found := _pairs(run, row, metric))]
            if not runs or len(pairs) < len(runs):
                continue
            labels = runs[0].scores[row.name].labels
            if weights is None:
                weights = draw(labels, generator)
            per_seed = np.stack([resampled(found, labels, weights) for found in pairs])
            key = contender.name, *contender.runs_by_row[row]
            if key not in seeds:
                seeds[key] = draw_seeds(len(runs), generator)
            samples[row][contender.name] = (per_seed.T * seeds[key]).sum(axis=1)
    everywhere = set.intersection(*(set(samples[row]) for row in study.rows))
    samples[None] = {name: np.mean([samples[row][name] for row in study.rows], axis=0) for name in everywhere}
    return samples


def _pairs(run: Run, row: Row, metric: str) -> RankedPairs | None:
    """What an AUROC ranks, of `DEFECTIVE_PIXEL_AUROC` only the pixels of defective images; None if it is not kept."""
    scores = run.scores.get(row.name)
    if scores is None or scores.labels.all() or not scores.labels.any():
        return None
    if metric == IMAGE_AUROC:
        return image_pairs(scores.scores, scores.labels)
    pairs = run.pixel_pairs.get(row.name)
    if pairs is None or metric == PIXEL_AUROC:
        return pairs
    return RankedPairs(
        won=pairs.won * scores.labels, positives=pairs.positives, negatives=pairs.negatives * scores.labels
    )


def draw(labels: NDArray[np.bool_], generator: np.random.Generator) -> NDArray[np.float64]:
    """(RESAMPLES, N) how often each image is drawn, good and defective ones each as often as there are such images."""
    weights = np.empty((RESAMPLES, len(labels)))
    for chosen in (labels, ~labels):
        n = np.count_nonzero(chosen)
        weights[:, chosen] = generator.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return weights


def draw_seeds(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(RESAMPLES, count) weights of the seeds, 1 in all: how far the mean over other seeds might have been.

    As often drawn as there are seeds, and with their deviations scaled by sqrt(n / (n - 1)): drawing from n values
    alone gives their mean too small a variance, by (n - 1) / n. One seed says nothing of others.
    """
    mean = np.full(count, 1 / count)
    drawn = generator.multinomial(count, mean, size=RESAMPLES) / count
    return mean + (drawn - mean) * math.sqrt(count / max(1, count - 1))


def resampled(pairs: RankedPairs, labels: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) AUROC with every image counted as often as the (B, N) weights say."""
    defective = weights[:, labels]  # (B, D)
    won = np.einsum("bn,bn->b", defective @ pairs.won, weights)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no positive or no negative was drawn
        return won / ((defective @ pairs.positives) * (weights @ pairs.negatives))
