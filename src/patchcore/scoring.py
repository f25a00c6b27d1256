"""Distances -> image scores and anomaly maps; verdicts from good images. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MAP_SIGMA = 4.0  # pixels, the smoothing of the paper


def patch_scores(distances: Tensor) -> Tensor:
    """(..., k) squared distances to the k nearest bank patches -> (...) their mean, the higher the more anomalous."""
    return distances.mean(dim=-1)


def image_scores(scores: Tensor) -> Tensor:
    """(N, h, w) patch scores -> (N,) image scores: an image is as anomalous as its most anomalous patch."""
    return scores.flatten(1).amax(dim=1)


def anomaly_maps(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Patch scores at pixel resolution: bilinear upsampling, then a Gaussian of sigma 4 pixels.

    Both are linear and separable, so together they are one matrix from the left and one from the right.

    Args:
        scores: (N, h, w) float32, one score per position of the patch grid.
        size: (H, W) of the network input.

    Returns:
        (N, H, W) float32 on the device of `scores`, the higher the more anomalous.
    """
    rows, columns = (
        _upsample_and_smooth(int(source), target).to(scores.device)  # a number, also where it is exported
        for source, target in zip(scores.shape[1:], size, strict=True)
    )
    return rows @ scores @ columns.T  # (H, h) @ (N, h, w) @ (w, W)


@lru_cache(maxsize=16)
def _upsample_and_smooth(source: int, target: int) -> Tensor:
    """(target, source) matrix of bilinear interpolation (align_corners=False) followed by a Gaussian filter."""
    from scipy.ndimage import gaussian_filter1d

    unit = torch.eye(source, dtype=torch.float64)[None]  # every column is one source position
    upsampled = F.interpolate(unit, size=target, mode="linear", align_corners=False)[0].T  # (target, source)
    return torch.from_numpy(gaussian_filter1d(upsampled.numpy(), MAP_SIGMA, axis=0)).float()


@dataclass(frozen=True)
class Verdict:
    """What held-out good images say of N images.

    Attributes:
        values: (N,) what the threshold cuts, the higher the more anomalous.
        threshold: the highest of the held-out images.
        rejected: (N,) bool, above the threshold.
        p_values: (N,) in (0, 1], how probable it is that a good image is at least as anomalous.
    """

    values: NDArray[np.float64]
    threshold: float
    rejected: NDArray[np.bool_]
    p_values: NDArray[np.float64]


def derive_verdict(raw_scores: NDArray[np.float64], held_out: NDArray[np.float64]) -> Verdict:
    """Hold images against good ones that took no part in training.

    Args:
        raw_scores: (M, N) raw scores of the M members of a detector for N images.
        held_out: (M, V) the same for V held-out good images, at least one.
    """
    values, good = decision_values(raw_scores, held_out)
    threshold = float(good.max())
    return Verdict(values, threshold, values > threshold, p_values(values, good))


def p_values(values: NDArray[np.float64], good: NDArray[np.float64]) -> NDArray[np.float64]:
    """How probable it is that a good image scores at least so high: (1 + those of `good` that do) / (1 + V).

    Valid for any distribution of the scores (Vovk, Gammerman and Shafer 2005): of good images at most a share p gets
    a p-value up to p. It cannot fall below 1 / (1 + V).

    Args:
        values: (N,) scores.
        good: (V,) scores of good images that took no part in training.
    """
    at_least = len(good) - np.searchsorted(np.sort(good), values, side="left")
    return (1 + at_least) / (1 + len(good))


def decision_values(
    raw_scores: NDArray[np.float64], held_out: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One value per image that a threshold may cut, without looking at the test set as a whole.

    Args:
        raw_scores: (M, N) raw scores of the M members of a detector for N images.
        held_out: (M, V) the same for V held-out good images.

    Returns:
        (N,) and (V,) values: the raw scores of a single member; of an ensemble, the members' mean after each was
        divided by its mean over the held-out images.
    """
    if len(raw_scores) == 1:
        return raw_scores[0], held_out[0]
    unit = held_out.mean(axis=1, keepdims=True)
    return (raw_scores / unit).mean(axis=0), (held_out / unit).mean(axis=0)
