"""What a detector says of good images that it has not learnt -> a calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patchcore.calibration import PIXEL_LEVELS, Calibration
from patchcore.types import PatchCoreError

_EVERY = 4  # of the pixels in both directions gives their quantiles
_MOST_PIXELS = 2**23  # that are ranked


class Scored(Protocol):
    """What is read of what a detector says of B images: (M, B) scores and (M, B, H, W) maps of its M members."""

    @property
    def scores(self) -> Tensor: ...

    @property
    def maps(self) -> Tensor: ...


def calibrate(kind: str, parts: Iterable[Scored]) -> Calibration:
    """Sum up what a detector says of good images.

    Args:
        kind: how they were kept unseen, one of `patchcore.calibration.KINDS`.
        parts: what it says, some images at a time.

    Raises:
        PatchCoreError: a score is not finite.
    """
    scores, pixels = [], []
    for part in parts:
        scores.append(part.scores.double().cpu())
        pixels.append(combine(part.maps)[:, ::_EVERY, ::_EVERY].flatten().cpu())
    sample = torch.cat(pixels).numpy()
    sample = sample[:: -(-len(sample) // _MOST_PIXELS)]
    try:
        return Calibration(
            kind=kind,
            scores=torch.cat(scores, dim=1).numpy(),
            pixels=np.quantile(sample.astype(np.float64), PIXEL_LEVELS),
        )
    except ValueError as error:
        raise PatchCoreError(f"cannot calibrate: {error}") from error


def combine(maps: Tensor) -> Tensor:
    """(M, B, H, W) maps of members -> (B, H, W) of the whole detector: their mean."""
    return maps[0] if len(maps) == 1 else maps.mean(dim=0)


def calibrate_by_folds(
    count: int,
    folds: int,
    seed: int,
    fit: Callable[[Sequence[int]], Callable[[Tensor], Scored]],
    batches: Callable[[Sequence[int], bool], Iterable[Tensor]],
) -> Calibration:
    """Score every fold of `count` photos by what was fitted to the others; the result is in the order of the photos.

    Args:
        seed: of the folds.
        fit: numbers of photos -> scores of batches by what has learnt them.
        batches: (numbers of photos, False) -> batches of them.

    Raises:
        PatchCoreError: there are fewer photos than folds.
    """
    if not 2 <= folds <= count:
        raise PatchCoreError(f"expected from 2 to {count} folds, as many as there are photos, got {folds}")
    order = np.random.default_rng(seed).permutation(count)

    def parts() -> Iterator[Scored]:
        for fold in np.array_split(order, folds):
            score = fit(sorted(set(order.tolist()) - set(fold.tolist())))
            for batch in batches(fold.tolist(), False):
                yield score(batch)

    found = calibrate("folds", parts())
    back = np.argsort(order)
    return dataclasses.replace(found, scores=found.scores[:, back])
