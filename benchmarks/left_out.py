"""PatchCore's bank from patch embeddings that were computed before, and the scores that calibrate it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.calibration import PIXEL_LEVELS, Calibration
from patchcore.methods.patchcore.coreset import project
from patchcore.methods.patchcore.memory_bank import MemoryBank
from patchcore.methods.patchcore.sampler import GREEDY_SAMPLERS, sample
from patchcore.methods.patchcore.search import Apart
from patchcore.methods.patchcore.stand_ins import stand_ins
from patchcore.scoring import image_scores

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Thinning:
    """How patches are chosen for the bank."""

    sampler: str = "approx_greedy_coreset"
    fraction: float = 0.1

    def __str__(self) -> str:
        return self.sampler if self.sampler == "identity" else f"{self.sampler} {100 * self.fraction:g} %"


class PatchBank:
    """What PatchCore learns of N images, from their patches.

    Args:
        patches: (N, P, D) float32.
        seed: of the sampler.
    """

    def __init__(self, patches: Tensor, thinning: Thinning, seed: int) -> None:
        self.patches, self.thinning, self.seed = patches, thinning, seed
        rows = patches.flatten(0, 1)
        generator = torch.Generator().manual_seed(seed)
        self.chosen = sample(rows, thinning.sampler, thinning.fraction, generator)
        self.bank = MemoryBank(rows[self.chosen])

    def scores(self, patches: Tensor) -> Scores:
        """(N,) scores of other images by their (N, P, D) patches."""
        return _of_images(self._distances(patches))

    def left_out(self) -> Scores:
        """(N,) scores of the training images that calibrate a detector: each without the rows that come from it."""
        distances, of_image = self._to_other_images(), self.patches.shape[1]
        if self.thinning.sampler in GREEDY_SAMPLERS:
            rows = self.patches.flatten(0, 1)
            points = project(rows, torch.Generator().manual_seed(self.seed))
            for image, instead in enumerate(stand_ins(points, self.chosen, of_image)):
                if len(instead):
                    nearest = torch.cdist(self.patches[image], rows[instead]).amin(dim=1).square()
                    distances[image] = torch.minimum(distances[image], nearest)
        return _of_images(distances)

    def rows_dropped(self) -> Scores:
        """(N,) scores of the training images by what is left of the finished bank, with nothing in the rows' place."""
        return _of_images(self._to_other_images())

    def in_sample(self) -> Scores:
        """(N,) scores of the training images by the whole bank, their own rows among them."""
        return self.scores(self.patches)

    def _to_other_images(self) -> Tensor:
        count, of_image, _ = self.patches.shape
        images = torch.arange(count, dtype=torch.int32).repeat_interleave(of_image)
        return self._distances(self.patches, Apart(images, (self.chosen // of_image).int()))

    def _distances(self, patches: Tensor, apart: Apart | None = None) -> Tensor:
        """(N, P) squared distances of patches to the nearest row."""
        return self.bank.distances(patches.flatten(0, 1), 1, apart).reshape(patches.shape[:2])


def _of_images(distances: Tensor) -> Scores:
    return image_scores(distances[:, None]).double().numpy()


def retrained(patches: Tensor, thinning: Thinning, seed: int) -> Scores:
    """(N,) scores of the training images, each by a bank that was made without it."""
    everyone = torch.arange(len(patches))
    return np.concatenate(
        [PatchBank(patches[everyone != left], thinning, seed).scores(patches[left, None]) for left in everyone]
    )


def folds(patches: Tensor, thinning: Thinning, seed: int, count: int = 5) -> Scores:
    """(N,) scores of the training images, each by a bank of the other folds' images."""
    scores = np.empty(len(patches))
    order = np.random.default_rng(seed).permutation(len(patches))
    for fold in np.array_split(order, count):
        others = np.setdiff1d(order, fold)
        scores[fold] = PatchBank(patches[others], thinning, seed).scores(patches[fold])
    return scores


def calibration(scores: Scores) -> Calibration:
    """The calibration by (n,) scores, or (M, n) of M members; of maps it knows nothing."""
    return Calibration(kind="leave_one_out", scores=np.atleast_2d(scores), pixels=np.zeros(len(PIXEL_LEVELS)))


def rejected(calibrating: Scores, scores: Scores, rate: float) -> NDArray[np.bool_]:
    """Which of N images are rejected at a stated rate."""
    return calibration(calibrating).judge(scores[None], rate).rejected


def expected_rate(count: int, rate: float) -> float:
    """The rate that exchangeable calibration images lead to on average: whole ranks of n + 1."""
    return max(1, int(rate * (count + 1) * (1 + 1e-12))) / (count + 1)
