"""Greedy coreset: one pick after the other over all points, against picks in batches."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.inputs import FRACTION, Inputs
from benchmarks.measure import Report, Table, Work, at_least, at_most, compare
from patchcore.methods.patchcore.coreset import greedy_order

WHOLE = 60_000  # points up to which the reference picks to the end
PART = 1_500  # picks that it makes beyond


def pick_one_by_one(points: Tensor, initial: Tensor, count: int) -> Tensor:
    """Greedy farthest-point selection (Sener & Savarese 2018), by definition.

    Args:
        points: (N, D) float32.
        initial: (N,) distances to start from.
        count: number of picks.

    Returns:
        (count,) indices in the order of picking.
    """
    norms = points.square().sum(dim=1)
    nearest = initial.square()
    order = []
    for _ in range(count):
        pick = nearest.argmax().item()
        order.append(pick)
        distances = torch.addmv(norms, points, points[pick], alpha=-2) + norms[pick]  # |a|^2 - 2 ab + |b|^2
        nearest = torch.minimum(nearest, distances)
        nearest[pick] = -1  # not again
    return torch.tensor(order)


def difference(reference: Tensor, ours: Tensor) -> str:
    """How many of the reference's picks ours lack, and how many stand at another place."""
    ours = ours[: len(reference)]
    other = len(set(reference.tolist()) - set(ours.tolist()))
    moved = int((reference != ours).sum())
    return f"{other} of {len(reference):,} picks, {moved} in another order"


@torch.inference_mode()
def run(inputs: Inputs) -> Report:
    """Compare on projected patch embeddings of growing numbers of images."""
    settings = inputs.settings
    report = Report()
    passes = []
    for images in settings.sizes:
        points, initial = inputs.points(images), inputs.start(images)
        rows, dimension = points.shape
        picks = int(FRACTION * rows)
        part = picks if rows <= WHOLE or settings.whole_reference else min(PART, picks)
        batches: list[int] = []
        greedy_order(points, initial, picks, batches.append)
        passes.append((f"{rows:,} x {dimension}", f"{picks:,}", f"{len(batches):,}"))
        case = f"N = {rows:,} x {dimension}, {picks:,} picks"
        if part < picks:
            case += f"; reference extrapolated from its first {part:,}"
        row = compare(
            "coreset",
            case,
            reference=lambda points=points, initial=initial, part=part: pick_one_by_one(points, initial, part),
            ours=lambda points=points, initial=initial, picks=picks: greedy_order(points, initial, picks),
            difference=difference,
            device=settings.device,
            repeats=settings.repeats,
            work=Work(operations=2 * rows * dimension * picks, nbytes=len(batches) * points.nbytes),
            extrapolate=picks / part,
        )
        report.comparisons.append(row)
        if rows == 54 * 784:
            report.targets.append(at_least("coreset, N = 42,336", 20, row.ratio))
        if rows == 289 * 784:
            report.targets.append(at_least("coreset, N = 226,576", 15, row.ratio))
            if settings.device.type == "cuda":
                report.targets.append(at_most("coreset, N = 226,576 on the GPU", 0.5, row.our_seconds, " s"))
    title = "Passes over all points (the pick-by-pick loop makes one for every pick)"
    report.tables.append(Table(title=title, header=("points", "picks", "passes"), rows=passes))
    return report
