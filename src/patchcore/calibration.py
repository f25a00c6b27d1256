"""From the scores of good images that a detector has not learnt to verdicts at a stated rate of false rejects.

A new good image and the n calibration images are exchangeable, so its score is as likely to be the highest of the n + 1
as any other: its conformal p-value (Vovk, Gammerman and Shafer 2005) is at most a with a probability of at most a,
whatever the distribution of the scores. An image is rejected where its p-value is at most the rate. No defective image
has a say in this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchcore.config import FALSE_REJECTS

SUSPICIOUS = 3.5  # outlyingness, after Iglewicz and Hoaglin (1993)
_ALIKE = 1e-5  # relative; scores that differ by less are equal: their last digits depend on the batch they come in
_FEWEST_SUSPECTED = 10  # images; fewer do not tell how far good ones spread
KINDS = ("leave_one_out", "folds", "held_out", "good_images")

# Shares of the pixels of good images that lie at or below the stored values.
PIXEL_LEVELS = (0.5, 0.9, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Verdict:
    """What a calibration says of N images.

    Attributes:
        values: (N,) what the threshold cuts, the higher the more anomalous: the score, or of an ensemble minus the
            decimal logarithm of the p-value.
        threshold: images above it are rejected.
        rejected: (N,) bool.
        p_values: (N,) in (0, 1], how probable it is that a good image is at least as anomalous.
        rate: of false rejects, that the threshold allows.
    """

    values: NDArray[np.float64]
    threshold: float
    rejected: NDArray[np.bool_]
    p_values: NDArray[np.float64]
    rate: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What a detector says of n good images that it has not learnt.

    Attributes:
        kind: how they were kept unseen, one of `KINDS`.
        scores: (M, n) float64 scores of the M members.
        pixels: (len(PIXEL_LEVELS),) float64 quantiles of the values of all their maps; of an ensemble, of the mean map.
    """

    kind: str
    scores: NDArray[np.float64]
    pixels: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r:.80}")
        for name, dimensions in (("scores", 2), ("pixels", 1)):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.ndim != dimensions or not values.size:
                raise ValueError(f"{name} must be numbers in {dimensions} dimensions, got the shape {values.shape}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite")
        if len(self.pixels) != len(PIXEL_LEVELS) or (np.diff(self.pixels) < 0).any():
            raise ValueError(f"pixels must be {len(PIXEL_LEVELS)} ascending numbers, got {self.pixels.tolist()}")

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Calibration:
        """Read what `to_plain` gave; a ValueError or KeyError says what is wrong with it."""
        if unknown := content.keys() - {"kind", "scores", "pixels"}:
            raise ValueError(f"a calibration has no {unknown.pop()!r:.40}")
        numbers = {name: _numbers(name, content[name]) for name in ("scores", "pixels")}
        return cls(kind=content["kind"], **numbers)

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"kind": self.kind, "scores": self.scores.tolist(), "pixels": self.pixels.tolist()}

    def __len__(self) -> int:
        return self.scores.shape[1]

    def rate(self, false_rejects: float) -> float:
        """The share of good images that is rejected at most: the one asked for, or the least that n images allow."""
        if not 0 < false_rejects < 1:
            raise ValueError(f"false_rejects must be above 0 and below 1, got {false_rejects}")
        return max(false_rejects, 1 / (len(self) + 1))

    def threshold(self, false_rejects: float = FALSE_REJECTS) -> float | None:
        """The score above which an image is rejected; None for an ensemble, which is judged by p-values alone."""
        if len(self.scores) > 1:
            return None
        return float(np.sort(self.scores[0])[-_rejected_ranks(self.rate(false_rejects), len(self))])

    @property
    def pixel_threshold(self) -> float:
        """The map value above which a pixel is anomalous: one in a thousand pixels of good images is."""
        return float(self.pixels[PIXEL_LEVELS.index(0.999)])

    @property
    def heat_ends(self) -> tuple[float, float]:
        """The ends of a colour scale, of good images alone: the median is dark, the pixel threshold the middle."""
        low = float(self.pixels[PIXEL_LEVELS.index(0.5)])
        return low, low + 2 * (self.pixel_threshold - low)

    def outlyingness(self) -> NDArray[np.float64]:
        """How far every calibration image stands above the others, (n,): the modified z-score, of members their mean.

        It is the distance from the median in units of the median absolute deviation, scaled to the standard deviation
        of a normal distribution: unlike mean and deviation, these two are not moved by the images that are looked for.
        """
        centred = self.scores - np.median(self.scores, axis=1, keepdims=True)
        spread = 1.4826 * np.median(np.abs(centred), axis=1, keepdims=True)
        return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0).mean(axis=0)

    def suspects(self) -> list[int]:
        """The numbers of the calibration images whose `outlyingness` is above SUSPICIOUS, the most suspicious first.

        Among fewer than ten images none is suspected.
        """
        if len(self) < _FEWEST_SUSPECTED:
            return []
        outlyingness = self.outlyingness()
        return [int(i) for i in np.argsort(-outlyingness, kind="stable") if outlyingness[i] > SUSPICIOUS]

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """How probable it is that a good image is at least as anomalous; never below 1 / (n + 1).

        An ensemble's members are combined by ranks: the image joins the n calibration images, each of the n + 1 gets
        the p-value of its rank in every member, and the sum of their logarithms (Fisher's statistic) is ranked again.
        All n + 1 are treated alike, so the result is as valid as that of a single member, however dependent the members
        are.

        Args:
            scores: (M, N) of the members for N images; what is said of one depends on no other.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim != 2 or len(scores) != len(self.scores):
            raise ValueError(f"expected scores of {len(self.scores)} members, (M, N), got the shape {scores.shape}")
        n = len(self)
        members = range(len(scores))
        least = scores - _ALIKE * np.abs(scores)  # what is as high as a score
        at_least = np.stack([_at_least(self.scores[member], least[member]) for member in members])  # (M, N)
        if len(scores) == 1:
            return (1 + at_least[0]) / (1 + n)
        good = self.scores - _ALIKE * np.abs(self.scores)
        own = np.stack([_at_least(self.scores[member], good[member]) for member in members])  # (M, n)
        surprise = -np.log(1 + at_least).sum(axis=0)  # (N,), up to a constant that all n + 1 share
        p = np.empty(scores.shape[1])
        for i in range(scores.shape[1]):
            above = scores[:, i, None] >= good  # the new image counts among those that score at least so high
            p[i] = 1 + np.count_nonzero(-np.log(own + above).sum(axis=0) >= surprise[i] - 1e-12)
        return p / (1 + n)

    def judge(self, scores: ArrayLike, false_rejects: float = FALSE_REJECTS) -> Verdict:
        """Judge N images by the (M, N) scores of the members; every image by itself."""
        p, rate, threshold = self.p_values(scores), self.rate(false_rejects), self.threshold(false_rejects)
        if threshold is not None:
            values = np.asarray(scores, dtype=np.float64)[0]
            rejected = ~(values - _ALIKE * np.abs(values) <= threshold)  # so is nan
            return Verdict(values, threshold, rejected, p, rate)
        # Between the last p-value that is rejected and the next.
        between = -math.log10((_rejected_ranks(rate, len(self)) + 0.5) / (len(self) + 1))
        values = -np.log10(p)
        return Verdict(values, between, (values > between) | np.isnan(scores).any(axis=0), p, rate)


def _at_least(good: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of the (n,) scores are at least as high as each of (N,) values."""
    return len(good) - np.searchsorted(np.sort(good), values, side="left")


def _rejected_ranks(rate: float, n: int) -> int:
    """How many of the n + 1 ranks are rejected at a rate; at least one, as `Calibration.rate` sees to it."""
    return max(1, math.floor(rate * (n + 1) * (1 + 1e-12)))


def clopper_pearson(count: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact confidence interval of a share (Clopper and Pearson 1934); (0, 1) of nothing.

    Raises:
        ValueError: `count` is not in [0, of].
    """
    from scipy.special import betaincinv  # the quantile of the beta law; scipy.stats takes 0.7 s to import

    if not 0 <= count <= of:
        raise ValueError(f"expected a count from 0 to {of}, got {count}")
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, of - count + 1, tail))
    high = 1.0 if count == of else float(betaincinv(count + 1, of - count, 1 - tail))
    return low, high


def _numbers(name: str, values: Any) -> NDArray[np.float64]:
    """Lists of numbers as an array; neither texts nor booleans count as numbers."""
    rows = values if isinstance(values, list) and values and isinstance(values[0], list) else [values]
    if not all(isinstance(row, list) and all(type(x) in (int, float) for x in row) for row in rows):
        raise ValueError(f"{name} must be lists of numbers, got {values!r:.80}")
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"every list in {name} must be as long as the first")
    return np.array(values, dtype=np.float64)
