"""The points that a greedy coreset still has to look at, and those that it can leave alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CPU_PRODUCT_ELEMENTS = 2**18  # distances held at once on the CPU, so that they stay in its cache (1 MiB)
GPU_PRODUCT_ELEMENTS = 2**27
# The forecast radius is lowered by this: too low leaves a few points active for nothing, too high costs a reactivation.
FORECAST_MARGIN = 0.97


class ActivePoints:
    """Squared distances of points to the picks among them, kept up to date only for points that may be picked.

    Greedy selection picks the farthest point each time, so the distance of the picks (the radius) falls, and a point
    nearer than the last pick's radius is never picked. Given a `limit` at or below that radius, the points below it are
    inactive: they are not compared with new picks. Their distances can only be too large, and they stay below the
    limit. Once no active point reaches the limit, an inactive one may be the farthest: the limit has to be lowered, and
    points that become active again are then compared with the picks they missed. Hence a wrong limit costs time but
    changes no pick. docs/performance.md shows a picture and what this saves.

    Args:
        points: (N, D) float32, contiguous.
        nearest: (N,) squared distances to start from.
        count: number of picks to come, at most N.

    Attributes:
        order: (count,) int64 indices of the picks, of which the first `picked` are made.
        limit: squared distance; all points at or above it are active, 0 if all points are.
    """

    def __init__(self, points: Tensor, nearest: Tensor, count: int) -> None:
        self.order = torch.empty(count, dtype=torch.int64, device=points.device)
        self.picked = 0
        self.limit = 0.0
        self._points, self._norms = points, points.square().sum(dim=1)
        # Of all points: the distance to the first `compared` picks, -1 for a pick. Not up to date for active ones,
        self._nearest = nearest
        self._compared = torch.zeros(len(points), dtype=torch.int32, device=points.device)
        # which are copied together with their points and norms.
        self._active = torch.arange(len(points), device=points.device)
        self._active_points, self._active_norms, self._active_nearest = points, self._norms, nearest.clone()

    def farthest(self) -> float:
        """The largest squared distance of an active point; -1 if there is none."""
        return self._active_nearest.amax().item() if len(self._active) else -1.0

    def share_below(self, limit: float) -> float:
        """The share of the active points that are nearer than a squared distance."""
        return (self._active_nearest < limit).float().mean().item()

    def candidates(self, size: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """The farthest active points.

        Returns:
            (C,) positions for `add`, C at most `size`; (C,) their squared distances, descending; (C, C) their squared
            distances to each other; and the bound that no other point's squared distance exceeds.
        """
        nearest = self._active_nearest
        far, positions = nearest.topk(min(size + 1, len(nearest)))
        rest = far[size].item() if len(far) > size else -1.0
        far, positions = far[:size], positions[:size]
        points, norms = self._active_points[positions], self._active_norms[positions]
        return positions, far, squared_distances(points, norms, points, norms), max(rest, self.limit or -1.0)

    def add(self, positions: Tensor) -> None:
        """Pick active points by their positions, and compare the others with them unless these are the last picks."""
        before, self.picked = self.picked, self.picked + len(positions)
        self.order[before : self.picked] = self._active[positions]
        if self.picked < len(self.order):
            self._compare(self._active_points, self._active_norms, self._active_nearest, before)
            self._active_nearest[positions] = -1.0

    def set_limit(self, limit: float) -> None:
        """Make points below a new limit inactive, and those at or above it active and up to date."""
        self._nearest[self._active] = self._active_nearest
        self._compared[self._active] = self.picked
        self.limit, self._active = limit, (self._nearest >= limit).nonzero()[:, 0]
        compared = self._compared[self._active]
        for before in compared.unique().tolist():
            if before < self.picked:
                rows = self._active[compared == before]
                nearest = self._nearest[rows]
                self._compare(self._points[rows], self._norms[rows], nearest, before)
                self._nearest[rows] = nearest
        self._active_points, self._active_norms = self._points[self._active], self._norms[self._active]
        self._active_nearest = self._nearest[self._active]

    def _compare(self, points: Tensor, norms: Tensor, nearest: Tensor, before: int) -> None:
        """Compare points with all but the first `before` picks; `nearest` is changed in place."""
        picks = self.order[before : self.picked]
        picked, picked_norms = self._points[picks].T.contiguous(), self._norms[picks]
        rows = max(1, product_elements(points.device) // len(picks))
        for part, part_norms, part_nearest in zip(
            points.split(rows), norms.split(rows), nearest.split(rows), strict=True
        ):
            # The row's own norm adds the same to all its distances, so it can wait until the smallest is known.
            new = torch.addmm(picked_norms, part, picked, alpha=-2).amin(dim=1)
            new.add_(part_norms).clamp_(min=0)
            torch.minimum(part_nearest, new, out=part_nearest)


class RadiusForecast:
    """Forecasts the distance of the last of `count` picks from those made: it falls with a power of their number."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen: list[tuple[int, float]] = []

    def add(self, picked: int, radius: float) -> None:
        """Note that after so many picks the next one has this distance, or at most this one."""
        self._seen.append((picked, radius))

    def last(self) -> float:
        """The distance expected of the last pick, less a margin; 0 where nothing can be told yet."""
        picked, radius = self._seen[-1]
        before, wider = next(entry for entry in self._seen if entry[0] >= picked / 3)
        if before == picked or radius == 0:
            return 0.0
        power = min(0.0, math.log(radius / wider) / math.log(picked / before))
        return FORECAST_MARGIN * radius * (self._count / picked) ** power


def squared_distances(a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor) -> Tensor:
    """(A, B) squared L2 distances of (A, D) and (B, D) points from one matrix product, at least 0.

    `a_norms` and `b_norms` are the points' squared lengths.
    """
    return torch.addmm(a_norms[:, None] + b_norms, a, b.T, alpha=-2).clamp_(min=0)


def product_elements(device: torch.device) -> int:
    """How many distances are held at a time."""
    return GPU_PRODUCT_ELEMENTS if device.type == "cuda" else CPU_PRODUCT_ELEMENTS
