"""PatchCore's bank from patch embeddings that were computed before, and the scores that calibrate it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.calibration import PIXEL_LEVELS, Calibration
from patchcore.methods.patchcore.memory_bank import MemoryBank
from patchcore.methods.patchcore.sampler import sample
from patchcore.methods.patchcore.search import Apart
from patchcore.scoring import image_scores, patch_scores

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
        self.patches = patches
        rows = patches.flatten(0, 1)
        generator = torch.Generator().manual_seed(seed)
        self.chosen = sample(rows, thinning.sampler, thinning.fraction, generator)
        self.bank = MemoryBank(rows[self.chosen])

    def scores(self, patches: Tensor) -> Scores:
        """(N,) scores of other images by their (N, P, D) patches."""
        return self._scores(patches, None)

    def left_out(self) -> Scores:
        """(N,) scores of the training images, each by the rows of the finished bank that come from the others."""
        count, of_image, _ = self.patches.shape
        images = torch.arange(count, dtype=torch.int32)
        return self._scores(self.patches, Apart(images.repeat_interleave(of_image), (self.chosen // of_image).int()))

    def in_sample(self) -> Scores:
        """(N,) scores of the training images by the whole bank, their own rows among them."""
        return self.scores(self.patches)

    def _scores(self, patches: Tensor, apart: Apart | None) -> Scores:
        distances = patch_scores(self.bank.distances(patches.flatten(0, 1), 1, apart))
        return image_scores(distances.reshape(len(patches), 1, -1)).double().numpy()


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
