"""Thinning the memory bank: all patches, a random share, or a greedy coreset.

A greedy coreset (Sener & Savarese 2018, PatchCore's algorithm 1) picks, again and again, the point farthest
from what is kept. Picking point by point reads the whole bank for every pick. It need not: take the points
that are farthest now. Distances only ever shrink, so every point outside that small set stays at most as far
as the bound, the farthest distance outside. Inside the set the picks are made with the set's own distances
for as long as the farthest is at least the bound; these are exactly the greedy picks. Then one matrix product
brings the whole bank up to date with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.config import SamplerConfig

PROJECTION_DIMENSION = 128  # distances are measured in a random projection of this many dimensions
NUM_STARTING_POINTS = 10
CANDIDATES = 2048  # size of the small set in which a batch of picks is made
CPU_PRODUCT_ELEMENTS = 2**18  # distances held at once on the CPU, so that they stay in its cache (1 MiB)
GPU_PRODUCT_ELEMENTS = 2**27
TRANSFERRED_ROWS = 2**16  # points that are brought to another device at a time

Progress = Callable[[int], None]  # told how many points have been picked since the last call


def kept_of(patches: int, config: SamplerConfig) -> int:
    """How many of so many patches a sampler keeps: identity all, others their share, rounded down, at least one."""
    return patches if config.name == "identity" else max(1, int(config.fraction * patches))


def sample(
    features: Tensor,
    config: SamplerConfig,
    generator: torch.Generator,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Choose the patches that the memory bank keeps.

    Args:
        features: (N, D) float32.
        config: which sampler, and the share kept, see `kept_of`.
        generator: a CPU generator, the source of every random choice.
        progress: called with the number of new picks while a greedy sampler works.
        device: where greedy samplers compute distances; None means where the features are.

    Returns:
        (K,) int64 row indices on the CPU; in the order of choice for the greedy samplers.
    """
    count = kept_of(len(features), config)
    if config.name == "identity":
        return torch.arange(len(features))
    if config.name == "random":
        return torch.randperm(len(features), generator=generator)[:count].sort().values
    points = project(features, generator, device or features.device)
    if config.name == "greedy_coreset":
        distances = full_initial_distances(points)
    else:
        starts = torch.randperm(len(points), generator=generator)[:NUM_STARTING_POINTS]
        distances = approx_initial_distances(points, starts)
    return greedy_order(points, distances, count, progress)


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
    return _squared_distances(points, norms, points[starts], norms[starts]).sqrt().mean(dim=1)


def full_initial_distances(points: Tensor) -> Tensor:
    """(N,) L2 norm of every point's row of the full distance matrix, which is never held as a whole."""
    norms = points.square().sum(dim=1)
    rows = [
        _squared_distances(points[part], norms[part], points, norms).sum(dim=1) for part in _parts(points, len(points))
    ]
    return torch.cat(rows).sqrt()


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
    points = points.contiguous()
    norms = points.square().sum(dim=1)
    nearest = distances.square()  # squared distance to what is kept; -1 once kept itself
    order: list[NDArray[np.int64]] = []
    picked = 0
    size = min(CANDIDATES, len(points))
    while picked < count:
        far, candidates = nearest.topk(min(size + 1, len(points)))
        bound = -1.0 if len(candidates) == len(points) else far[-1].item()
        far, candidates = far[:size], candidates[:size]
        among = _squared_distances(points[candidates], norms[candidates], points[candidates], norms[candidates])
        local = _pick_within(among.cpu().numpy(), far.cpu().numpy(), bound, count - picked)
        picks = candidates[torch.from_numpy(local).to(candidates.device)]
        kept, kept_norms = points[picks].T.contiguous(), norms[picks]
        for part in _parts(points, len(picks)):
            # The row's own norm adds the same to all its distances, so it can wait until the smallest is known.
            new = torch.addmm(kept_norms, points[part], kept, alpha=-2).amin(dim=1)
            new.add_(norms[part]).clamp_(min=0)
            torch.minimum(nearest[part], new, out=nearest[part])
        nearest[picks] = -1.0
        order.append(picks.cpu().numpy())
        picked += len(picks)
        if progress is not None:
            progress(len(picks))
    return torch.from_numpy(np.concatenate(order))


def _pick_within(
    among: NDArray[np.float32], nearest: NDArray[np.float32], bound: float, limit: int
) -> NDArray[np.int64]:
    """Greedy picks inside a candidate set, while no point outside (at most `bound` far) could come before."""
    picks: list[int] = []
    for _ in range(min(limit, len(nearest))):
        farthest = int(nearest.argmax())
        if picks and nearest[farthest] < bound:
            break
        picks.append(farthest)
        np.minimum(nearest, among[farthest], out=nearest)
        nearest[picks[-1]] = -1.0
    return np.array(picks)


def _squared_distances(a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor) -> Tensor:
    """(A, B) squared L2 distances from one matrix product, at least 0."""
    return torch.addmm(a_norms[:, None] + b_norms, a, b.T, alpha=-2).clamp_(min=0)


def _parts(points: Tensor, columns: int) -> Iterator[slice]:
    """Row ranges of `points` whose distances to `columns` others are computed at a time."""
    elements = GPU_PRODUCT_ELEMENTS if points.is_cuda else CPU_PRODUCT_ELEMENTS
    size = max(1, elements // columns)
    return (slice(start, start + size) for start in range(0, len(points), size))
