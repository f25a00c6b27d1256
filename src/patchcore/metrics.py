"""AUROC, AP, F1max and AUPRO on raw scores. Pure functions on arrays; undefined is nan.

Every metric here needs the negatives only as the share that scores above each positive. So the negatives are sorted
once, every positive is looked up among them, and all metrics follow from these ranks: no curve is built, and ties are
exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_FPR = 0.3  # AUPRO is integrated up to this false-positive rate (Bergmann et al. 2021)
NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class ImageMetrics:
    """Detection metrics over images, each in [0, 1], the higher the better; nan where a class is missing."""

    auroc: float
    ap: float
    f1max: float


@dataclass(frozen=True, kw_only=True)
class PixelMetrics:
    """Localisation metrics over pixels, each in [0, 1], the higher the better; nan where undefined.

    `anomaly_auroc` counts the pixels of defective images only, the other metrics those of all images.
    """

    auroc: float
    anomaly_auroc: float
    ap: float
    f1max: float
    aupro: float


@dataclass(frozen=True)
class _Ranks:
    """The scores of the positives in ascending order, and the share of negatives above each, without and with ties."""

    scores: NDArray[np.floating]
    above: NDArray[np.float64]
    above_or_tied: NDArray[np.float64]
    num_negatives: int

    @classmethod
    def of(cls, positives: NDArray, *negatives: NDArray) -> _Ranks:
        positives = np.sort(positives)
        above = np.zeros(len(positives), dtype=np.int64)
        above_or_tied = np.zeros(len(positives), dtype=np.int64)
        for group in negatives:
            group = np.sort(group)
            above += len(group) - np.searchsorted(group, positives, side="right")
            above_or_tied += len(group) - np.searchsorted(group, positives, side="left")
        total = sum(len(group) for group in negatives)
        return cls(positives, above / max(total, 1), above_or_tied / max(total, 1), total)

    @property
    def defined(self) -> bool:
        return self.num_negatives > 0 and len(self.scores) > 0

    def auroc(self) -> float:
        """The chance that a positive scores above a negative, ties counting half."""
        return 1.0 - float(np.mean(self.above + self.above_or_tied)) / 2 if self.defined else NAN

    def _precisions(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """True positives and precision when everything from each positive's score upwards is called positive."""
        true = len(self.scores) - np.searchsorted(self.scores, self.scores, side="left")
        return true, true / (true + self.above_or_tied * self.num_negatives)

    def ap(self) -> float:
        """Average precision: every positive contributes the precision at its own score."""
        return float(self._precisions()[1].mean()) if self.defined else NAN

    def f1max(self) -> float:
        """The highest F1 over all thresholds (score >= threshold is positive)."""
        if not self.defined:
            return NAN
        true, precision = self._precisions()
        recall = true / len(self.scores)
        return float((2 * precision * recall / (precision + recall)).max())

    def area_to(self, max_fpr: float, weights: NDArray[np.float64]) -> float:
        """Area under the curve of weighted recall against false-positive rate up to `max_fpr`, scaled to [0, 1].

        Each positive raises the curve, linearly over its ties with negatives: its part of the area has a closed form.
        `weights` (in the order of `scores`) sum to one.
        """
        start = np.minimum(self.above, max_fpr)
        rise = np.minimum(self.above_or_tied, max_fpr) - start
        whole = self.above_or_tied - self.above
        # The share of the tie that lies before max_fpr; the triangle below it, then full height up to max_fpr.
        reached = np.divide(rise, whole, out=np.ones_like(rise), where=whole > 0)
        area = reached * rise / 2 + (max_fpr - start - rise)
        return min(1.0, float(area @ weights) / max_fpr)  # rounding may carry a perfect curve beyond 1


def auroc(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """The chance that a positive scores above a negative, ties counting half; nan where there is none of either.

    Both arrays share any shape; `scores` are finite, the higher the more anomalous, `truth` is bool.
    """
    _check("scores", scores, truth)
    return _Ranks.of(scores[truth], scores[~truth]).auroc()


def image_metrics(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> ImageMetrics:
    """Detection metrics of N images.

    Args:
        scores: (N,) finite, the higher the more anomalous.
        labels: (N,) bool, True on defective images.
    """
    _check("scores", scores, labels)
    ranks = _Ranks.of(scores[labels], scores[~labels])
    return ImageMetrics(auroc=ranks.auroc(), ap=ranks.ap(), f1max=ranks.f1max())


def pixel_metrics(
    maps: NDArray[np.floating], masks: NDArray[np.bool_] | None, labels: NDArray[np.bool_]
) -> PixelMetrics:
    """Localisation metrics of N anomaly maps.

    Args:
        maps: (N, H, W) finite, the higher the more anomalous.
        masks: (N, H, W) bool, True on defects; None (no ground truth) makes every metric nan.
        labels: (N,) bool, True on defective images.
    """
    if masks is None:
        return PixelMetrics(auroc=NAN, anomaly_auroc=NAN, ap=NAN, f1max=NAN, aupro=NAN)
    _check("maps", maps, masks)
    defective = maps[labels], masks[labels]
    in_defective = defective[0][~defective[1]]
    in_good = maps[~labels][~masks[~labels]]
    positives = maps[masks]
    ranks = _Ranks.of(positives, in_defective, in_good)
    return PixelMetrics(
        auroc=ranks.auroc(),
        anomaly_auroc=_Ranks.of(positives, in_defective).auroc(),
        ap=ranks.ap(),
        f1max=ranks.f1max(),
        aupro=_aupro(ranks, positives, masks, MAX_FPR),
    )


def aupro(maps: NDArray[np.floating], masks: NDArray[np.bool_], *, max_fpr: float = MAX_FPR) -> float:
    """Area under the per-region-overlap curve up to `max_fpr`, in [0, 1]; the higher the better.

    A region of ten pixels weighs as much as one of ten thousand, unlike in pixel AUROC (Bergmann et al. 2021).
    Regions are the 8-connected components of each mask.

    Args:
        maps: (N, H, W) finite, the higher the more anomalous.
        masks: (N, H, W) bool, True on defects; nan unless both kinds of pixel occur.
        max_fpr: the false-positive rate, over all images, at which the curve ends, in (0, 1].
    """
    _check("maps", maps, masks)
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be in (0, 1], got {max_fpr}")
    positives = maps[masks]
    return _aupro(_Ranks.of(positives, maps[~masks]), positives, masks, max_fpr)


def _aupro(ranks: _Ranks, positives: NDArray[np.floating], masks: NDArray[np.bool_], max_fpr: float) -> float:
    if not ranks.defined:
        return NAN
    weights = region_weights(masks)
    return ranks.area_to(max_fpr, weights[np.argsort(positives, kind="stable")])


def region_weights(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The weight of every defect pixel, in the order of `masks[masks]`: each region weighs the same, all sum to one."""
    from scipy.ndimage import label

    sizes: list[NDArray[np.int64]] = []
    regions = 0
    for mask in masks:
        components, count = label(mask, structure=np.ones((3, 3)))
        regions += count
        sizes.append(np.bincount(components.ravel())[components[mask]])
    return 1.0 / (np.concatenate(sizes) * regions)


@dataclass(frozen=True, kw_only=True)
class RankedPairs:
    """How each of D defective images ranks against each of all N images: what a bootstrap over images needs for AUROC.

    AUROC over any choice of images, weighted or repeated, is the sum of `won` over the sum of `positives * negatives`;
    for pixel AUROC the maps are not needed again.

    Attributes:
        won: (D, N) float64 pairs of a positive of the one image and a negative of the other in which the positive
            scores higher, ties counting half.
        positives: (D,) number of positives of each defective image: one for the image, or its defect pixels.
        negatives: (N,) number of negatives of each image: one for a good image, or its normal pixels.
    """

    won: NDArray[np.float64]
    positives: NDArray[np.float64]
    negatives: NDArray[np.float64]


def image_pairs(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> RankedPairs:
    """Compare the (N,) scores of defective images with those of good ones."""
    _check("scores", scores, labels)
    defective = scores[labels][:, None]  # (D, 1)
    won = (defective > scores) + (defective == scores) / 2
    return RankedPairs(won=won * ~labels, positives=np.ones(len(defective)), negatives=(~labels).astype(np.float64))


def pixel_pairs(
    maps: NDArray[np.floating], masks: NDArray[np.bool_], labels: NDArray[np.bool_], *, levels: int = 1024
) -> RankedPairs:
    """Count the pairs of pixels that are ranked right, for each pair of images.

    Scores are binned between the quantiles of the defect pixels, each quantile in a bin of its own; this moves AUROC by
    less than 1 / (2 * `levels`). Maps are smooth, so every second normal pixel in both directions is enough.

    Args:
        maps: (N, H, W) finite, the higher the more anomalous.
        masks: (N, H, W) bool, True on defects.
        labels: (N,) bool, True on defective images.
    """
    _check("maps", maps, masks)
    positives = maps[masks]
    quantiles = np.quantile(positives, np.linspace(0, 1, levels + 1), method="lower") if len(positives) else positives
    edges = np.unique([np.nextafter(quantiles, -np.inf), quantiles])
    bins = len(edges) + 1

    def histogram(maps: NDArray[np.floating], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(N, bins) number of the chosen pixels of each image in each bin."""
        indices = np.searchsorted(edges, maps[chosen]) + bins * np.nonzero(chosen)[0]
        return np.bincount(indices, minlength=len(maps) * bins).reshape(len(maps), bins).astype(np.float64)

    defect = histogram(maps, masks)[labels]
    normal = histogram(maps[:, ::2, ::2], ~masks[:, ::2, ::2])
    below = normal.cumsum(axis=1) - normal / 2  # (N, bins) normal pixels below each bin, half of its own
    return RankedPairs(won=defect @ below.T, positives=defect.sum(axis=1), negatives=normal.sum(axis=1))


def _check(name: str, values: NDArray, truth: NDArray) -> None:
    if values.shape != truth.shape:
        raise ValueError(f"{name} {values.shape} and ground truth {truth.shape} differ in shape")
    if truth.dtype != np.bool_:
        raise ValueError(f"ground truth must be bool, got {truth.dtype}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(values))} nan or inf")
