"""Greedy coreset selection (Sener & Savarese 2018, PatchCore's algorithm 1), exact but in batches.

The greedy coreset picks, again and again, the point farthest from what is kept. Picking point by point reads all
points for every pick. It need not: take the points that are farthest now. Distances only ever shrink, so every point
outside that small set stays at most as far as the bound, the farthest distance outside. Inside the set the picks are
made with the set's own distances for as long as the farthest is at least the bound; these are exactly the greedy
picks. Then one matrix product brings the other points up to date with all of them.

Nor need all points be brought up to date. One that is nearer to what is kept than the last pick will be is never
picked, and how much nearer it comes is nobody's concern. That last distance is estimated from how the distances have
fallen so far; points below it rest. Where the estimate turns out too high, those it was wrong about catch up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PROJECTION_DIMENSION = 128  # distances are measured in a random projection of this many dimensions
# Size of the small set in which a batch of picks is made. The GPU likes fewer, larger batches.
CPU_CANDIDATES = 1024
GPU_CANDIDATES = 2048
CPU_PRODUCT_ELEMENTS = 2**18  # distances held at once on the CPU, so that they stay in its cache (1 MiB)
GPU_PRODUCT_ELEMENTS = 2**27
TRANSFERRED_ROWS = 2**16  # points that are brought to another device at a time
# The estimate of the last distance is lowered by this: too low leaves some work to do, too high makes some twice.
CAUTION = 0.97
LEAST_RESTING = 0.1  # share of the points that makes it worth to copy the others together

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
    selection = _Selection(points.contiguous(), distances.square(), count)
    while selection.picked < count:
        before = selection.picked
        selection.pick()
        if progress is not None:
            progress(selection.picked - before)
    return selection.order.cpu()


class _Selection:
    """Picks so far, and the distance of every point to them.

    `nearest` holds squared distances, -1 once a point is picked itself. Those of the points at work know all picks;
    those of resting points know the first `seen` picks, and lie below `limit`.
    """

    def __init__(self, points: Tensor, nearest: Tensor, count: int) -> None:
        self.order = torch.empty(count, dtype=torch.int64, device=points.device)
        self.picked = 0
        self._points, self._norms, self._nearest = points, points.square().sum(dim=1), nearest
        self._seen = torch.zeros(len(points), dtype=torch.int32, device=points.device)
        self._limit = 0.0
        self._radii: list[tuple[int, float]] = []  # number of picks, and the distance of the next
        self._index = torch.arange(len(points), device=points.device)  # of the points at work, and what is theirs:
        self._at_work = self._points, self._norms, nearest.clone()

    def pick(self) -> None:
        """Make the next batch of picks, at least one."""
        farthest = self._farthest()
        while farthest < self._limit:  # a resting point may be farther
            self._lower_limit()
            farthest = self._farthest()
        points, norms, nearest = self._at_work
        size = min(GPU_CANDIDATES if points.is_cuda else CPU_CANDIDATES, len(points))
        far, candidates = nearest.topk(min(size + 1, len(points)))
        bound = max(-1.0 if len(candidates) == len(points) else far[-1].item(), self._limit or -1.0)
        far, candidates = far[:size], candidates[:size]
        among = _squared_distances(points[candidates], norms[candidates], points[candidates], norms[candidates])
        missing = len(self.order) - self.picked
        local = _pick_within(among.cpu().numpy(), far.cpu().numpy(), bound, missing)
        picks = candidates[torch.from_numpy(local).to(candidates.device)]
        seen = self.picked
        self.order[seen : seen + len(picks)] = self._index[picks]
        self.picked += len(picks)
        if self.picked == len(self.order):
            return
        self._catch_up(points, norms, nearest, seen)
        nearest[picks] = -1.0
        self._radii.append((max(seen, 1), farthest**0.5))
        limit = self._last_radius() ** 2
        if limit > self._limit and (nearest < limit).float().mean().item() > LEAST_RESTING:
            self._send_to_work(limit)

    def _farthest(self) -> float:
        """The greatest squared distance of a point at work; -1 where none is."""
        nearest = self._at_work[2]
        return nearest.amax().item() if len(nearest) else -1.0

    def _catch_up(self, points: Tensor, norms: Tensor, nearest: Tensor, seen: int) -> None:
        """Bring `nearest` of some points, which know the first `seen` picks, up to date in place."""
        picks = self.order[seen : self.picked]
        kept, kept_norms = self._points[picks].T.contiguous(), self._norms[picks]
        for part in _parts(points, len(picks)):
            # The row's own norm adds the same to all its distances, so it can wait until the smallest is known.
            new = torch.addmm(kept_norms, points[part], kept, alpha=-2).amin(dim=1)
            new.add_(norms[part]).clamp_(min=0)
            torch.minimum(nearest[part], new, out=nearest[part])

    def _last_radius(self) -> float:
        """The distance expected of the last pick: it falls with a power of the number of picks."""
        picked, radius = self._radii[-1]
        before, wider = next(entry for entry in self._radii if entry[0] >= picked / 3)
        if before == picked or radius == 0:
            return 0.0
        power = min(0.0, math.log(radius / wider) / math.log(picked / before))
        return CAUTION * radius * (len(self.order) / picked) ** power

    def _lower_limit(self) -> None:
        """Send points to work that rest but may be picked next, as all at work are nearer than the limit."""
        self._radii.append((self.picked, self._limit**0.5))
        limit = min(self._last_radius() ** 2, 0.9 * self._limit)
        self._send_to_work(limit if limit > 0.1 * self._limit else 0.0)

    def _send_to_work(self, limit: float) -> None:
        """Let points below a new limit rest, and bring those to work and up to date that are not."""
        self._nearest[self._index] = self._at_work[2]
        self._seen[self._index] = self.picked
        self._limit, self._index = limit, (self._nearest >= limit).nonzero()[:, 0]
        late = self._seen[self._index]
        for seen in late.unique().tolist():
            if seen < self.picked:
                rows = self._index[late == seen]
                nearest = self._nearest[rows]
                self._catch_up(self._points[rows], self._norms[rows], nearest, seen)
                self._nearest[rows] = nearest
        self._at_work = self._points[self._index], self._norms[self._index], self._nearest[self._index]


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
