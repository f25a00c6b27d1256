"""Thinning the memory bank: all patches, a random share, or a greedy coreset."""

from __future__ import annotations

import torch
from torch import Tensor

from patchcore.methods.patchcore.coreset import (
    Progress,
    approx_initial_distances,
    full_initial_distances,
    greedy_order,
    project,
)

NUM_STARTING_POINTS = 10


def kept_of(patches: int, sampler: str, fraction: float) -> int:
    """How many of so many patches a sampler keeps: identity all, others their share, rounded down, at least one."""
    return patches if sampler == "identity" else max(1, int(fraction * patches))


def sample(
    features: Tensor,
    sampler: str,
    fraction: float,
    generator: torch.Generator,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Choose the patches that the memory bank keeps.

    Args:
        features: (N, D) float32.
        sampler: a name of `SAMPLERS`.
        fraction: share of the patches that is kept, see `kept_of`.
        generator: a CPU generator, the source of every random choice.
        progress: called with the number of new picks while a greedy sampler works.
        device: where greedy samplers compute distances; None means where the features are.

    Returns:
        (K,) int64 row indices on the CPU; in the order of choice for the greedy samplers.
    """
    count = kept_of(len(features), sampler, fraction)
    if sampler == "identity":
        return torch.arange(len(features))
    if sampler == "random":
        return torch.randperm(len(features), generator=generator)[:count].sort().values
    points = project(features, generator, device or features.device)
    if sampler == "greedy_coreset":
        distances = full_initial_distances(points)
    else:
        starts = torch.randperm(len(points), generator=generator)[:NUM_STARTING_POINTS]
        distances = approx_initial_distances(points, starts)
    return greedy_order(points, distances, count, progress)
