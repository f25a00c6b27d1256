"""Distances -> image scores and anomaly maps. Pure functions."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
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
