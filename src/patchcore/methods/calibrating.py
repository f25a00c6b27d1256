"""What a detector says of good images that it has not learnt -> a calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patchcore.calibration import PIXEL_LEVELS, Calibration
from patchcore.methods.batch_scores import BatchScores
from patchcore.methods.stored_model import Training
from patchcore.methods.training_images import TrainingImages
from patchcore.system.timing import StageTimer
from patchcore.types import PatchCoreError

if TYPE_CHECKING:
    from patchcore.methods.detector import Detector

_EVERY = 4  # of the pixels in both directions gives their quantiles
_MOST_PIXELS = 2**23  # that are ranked


def calibrate(kind: str, parts: Iterable[BatchScores]) -> Calibration:
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
    detector: Detector,
    images: TrainingImages,
    folds: int,
    batches: Callable[[Sequence[int], bool], Iterable[Tensor]],
) -> None:
    """Calibrate a detector with the photos that it has learnt: every fold is scored by one fitted to the others.

    Args:
        images: what it has learnt.
        folds: how many, at least 2.
        batches: (numbers of photos, whether to learn from them: then in all views) -> batches of them.

    Raises:
        PatchCoreError: there are fewer photos than folds.
    """
    count, training = images.count // images.views, detector.training or Training()
    if not 2 <= folds <= count:
        raise PatchCoreError(f"expected from 2 to {count} folds, as many as there are photos, got {folds}")
    order = np.random.default_rng(training.seed).permutation(count)
    timer = StageTimer(detector.workspace.device)

    def parts() -> Iterator[BatchScores]:
        for fold in np.array_split(order, folds):
            others = sorted(set(order.tolist()) - set(fold.tolist()))
            fresh = type(detector)(
                detector.config, workspace=detector.workspace, **dataclasses.asdict(detector.geometry)
            )
            learnt = TrainingImages(batches=batches(others, True), count=len(others) * images.views, views=images.views)
            fresh.fit_batches(learnt, training)
            with torch.inference_mode():
                scored = [fresh.score(batch, timer) for batch in batches(fold.tolist(), False)]
            yield from scored

    found = calibrate("folds", parts())
    detector.calibration = dataclasses.replace(found, scores=found.scores[:, np.argsort(order)])
