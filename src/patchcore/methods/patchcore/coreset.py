"""Greedy coreset selection (Sener & Savarese 2018, PatchCore's algorithm 1), exact but in batches.

The greedy coreset picks, again and again, the point farthest from all picks. Picking point by point reads all points
for every pick. It need not: take the points that are farthest now as candidates. Distances only ever shrink, so every
other point stays at most as far as the farthest of them is now, the bound. As long as the farthest candidate is at
least as far as the bound, it is the greedy pick; which one that is, the candidates' distances to each other tell. Then
one matrix product compares the other points with the whole batch of picks. `ActivePoints` leaves those out that are
too near to be picked at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.methods.patchcore.active_points import (
    ActivePoints,
    RadiusForecast,
    product_elements,
    squared_distances,
)

PROJECTION_DIMENSION = 128  # distances are measured in a random projection of this many dimensions
# Candidates of a batch. The GPU likes fewer, larger batches.
CPU_CANDIDATES = 1024
GPU_CANDIDATES = 2048
TRANSFERRED_ROWS = 2**16  # points that are brought to another device at a time
LEAST_INACTIVE = 0.1  # share of the active points to become inactive that makes copying the others worthwhile

Progress = Callable[[int], None]  # told how many points have been picked since the last call


def project(features: Tensor, generator: torch.Generator, device: torch.device | None = None) -> Tensor:
    """Project (N, D) features to (N, PROJECTION_DIMENSION) by a random linear map, unless D is that already.

    The map has the distribution of an untrained linear layer, uniform in +-1/sqrt(D), as in the original.

    Args:
        device: where the result is; None means where the features are. Another takes the features in parts.
    """
    device = device or features.device
    dimension = features.shape[1]
    if dimension == PROJECTION_DIMENSION:
        return features.to(device)
    mapping = torch.rand(dimension, PROJECTION_DIMENSION, generator=generator) * 2 - 1  # (D, P)
    mapping = (mapping / dimension**0.5).to(device)
    if device == features.device:
        return features @ mapping
    points = features.new_empty(len(features), PROJECTION_DIMENSION, device=device)
    for there, here in zip(points.split(TRANSFERRED_ROWS), features.split(TRANSFERRED_ROWS), strict=True):
        torch.mm(here.to(device), mapping, out=there)
    return points


def approx_initial_distances(points: Tensor, starts: Tensor) -> Tensor:
    """(N,) mean distance of every point to the starting points, PatchCore's cheap first estimate."""
    norms = points.square().sum(dim=1)
    starts = starts.to(points.device)
    return squared_distances(points, norms, points[starts], norms[starts]).sqrt().mean(dim=1)


def full_initial_distances(points: Tensor) -> Tensor:
    """(N,) L2 norm of every point's row of the full distance matrix, of which a tile is held at a time."""
    norms = points.square().sum(dim=1)
    sums = torch.zeros_like(norms)
    side = math.isqrt(product_elements(points.device))
    for part, part_norms, part_sums in zip(points.split(side), norms.split(side), sums.split(side), strict=True):
        for others, other_norms in zip(points.split(side), norms.split(side), strict=True):
            part_sums += squared_distances(part, part_norms, others, other_norms).sum(dim=1)
    return sums.sqrt_()


def greedy_order(points: Tensor, distances: Tensor, count: int, progress: Progress | None = None) -> Tensor:
    """Pick `count` points, each the one farthest from all picks before it.

    Args:
        points: (N, D) float32.
        distances: (N,) distances to start from, which decide the first pick.
        count: number of picks, at most N.
        progress: called with the number of new picks after every batch.

    Returns:
        (count,) int64 distinct indices on the CPU, in the order of picking. Once every point left coincides with a
        pick, the remaining picks are arbitrary.
    """
    active = ActivePoints(points.contiguous(), distances.square(), count)
    forecast = RadiusForecast(count)
    size = GPU_CANDIDATES if points.is_cuda else CPU_CANDIDATES
    while active.picked < count:
        before = active.picked
        while (farthest := active.farthest()) < active.limit:  # an inactive point may be farther
            forecast.add(before, active.limit**0.5)
            lower = min(forecast.last() ** 2, 0.9 * active.limit)
            active.set_limit(lower if lower > 0.1 * active.limit else 0.0)
        _pick_batch(active, size)
        if active.picked < count:
            forecast.add(max(before, 1), farthest**0.5)
            limit = forecast.last() ** 2
            if limit > active.limit and active.share_below(limit) > LEAST_INACTIVE:
                active.set_limit(limit)
        if progress is not None:
            progress(active.picked - before)
    return active.order.cpu()


def _pick_batch(active: ActivePoints, size: int) -> None:
    """Make the greedy picks that can be made among `size` candidates, at least one."""
    positions, nearest, among, bound = active.candidates(size)
    missing = len(active.order) - active.picked
    picks = _pick_within(among.cpu().numpy(), nearest.cpu().numpy(), bound, missing)
    active.add(positions[torch.from_numpy(picks).to(positions.device)])


def _pick_within(
    among: NDArray[np.float32], nearest: NDArray[np.float32], bound: float, limit: int
) -> NDArray[np.int64]:
    """At most `limit` greedy picks among candidates, while no other point (at most `bound` far) could come before.

    Args:
        among: (C, C) squared distances of the candidates to each other.
        nearest: (C,) squared distances of the candidates to the picks so far; changed in place.
    """
    picks: list[int] = []
    for _ in range(min(limit, len(nearest))):
        farthest = int(nearest.argmax())
        if picks and nearest[farthest] < bound:
            break
        picks.append(farthest)
        np.minimum(nearest, among[farthest], out=nearest)
        nearest[farthest] = -1.0
    return np.array(picks)
