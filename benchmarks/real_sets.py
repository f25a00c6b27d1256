"""Verdicts on photos: good images are split anew and again, and the detectors of a run are judged seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.inputs import BATCH, GEOMETRY, LITE0
from benchmarks.left_out import PatchBank, Thinning, calibration, expected_rate, folds, rejected, retrained
from benchmarks.measure import Table
from patchcore.calibration import clopper_pearson
from patchcore.datasets.layout import scan_test, scan_train
from patchcore.datasets.loader import ImageDataset, PrefetchLoader
from patchcore.features.workspace import Workspace
from patchcore.methods.patchcore.detector import PatchCore
from patchcore.metrics import auroc
from patchcore.system.timing import StageTimer
from patchcore.types import Sample

RATES = (0.05, 0.1)
SEEDS = (0, 1, 2, 3, 4)
LEFT_OUT = "left out of the finished bank"
FEW, SOME = 10, 200  # training images up to which a bank without each of them, and folds, are compared


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A category whose images were embedded, each once.

    Attributes:
        train: (N, P, D) float32 patches of its training images.
        good, faulty: those of its good and of its defective test images.
        names: of the training images.
    """

    category: str
    train: Tensor
    good: Tensor
    faulty: Tensor
    names: list[str]


def embed(root: Path, category: str) -> Embedded:
    """Embed a category with EfficientNet-Lite0 at 224 px."""
    workspace = Workspace([torch.device("cpu")], checksums=False)
    detector = PatchCore(LITE0, workspace=workspace, resize=GEOMETRY.resize, imagesize=GEOMETRY.imagesize)
    timer = StageTimer(workspace.device)

    def patches(samples: list[Sample]) -> Tensor:
        loader = PrefetchLoader(dataset=ImageDataset(samples, GEOMETRY), batch_size=BATCH, num_workers=2)
        return torch.cat([detector.members[0].embed(batch, timer).flatten(1, 2) for batch in loader])

    train, (test, _) = scan_train(root, category), scan_test(root, category)
    return Embedded(
        category=category,
        train=patches(train),
        good=patches([sample for sample in test if not sample.is_defective]),
        faulty=patches([sample for sample in test if sample.is_defective]),
        names=[sample.path.name for sample in train],
    )


@torch.inference_mode()
def seeds_table(images: Embedded, thinning: Thinning) -> Table:
    """What a run says: all training images in the bank, the test images judged at 5 %, seed by seed."""
    rows = []
    for seed in SEEDS:
        bank = PatchBank(images.train, thinning, seed)
        left_out, good, faulty = bank.left_out(), bank.scores(images.good), bank.scores(images.faulty)
        caught, wrongly = rejected(left_out, faulty, 0.05), rejected(left_out, good, 0.05)
        labels = np.repeat([False, True], [len(good), len(faulty)])
        suspects = calibration(left_out).suspects()
        rows.append(
            (
                str(seed),
                f"{auroc(np.concatenate([good, faulty]), labels):.3f}",
                share(caught),
                share(wrongly),
                ", ".join(images.names[number] for number in suspects[:5])
                + (f" and {len(suspects) - 5} more" if len(suspects) > 5 else "")
                or "none",
            )
        )
    header = ("seed", "image AUROC", "defects caught", "good ones rejected", "suspects")
    title = f"{images.category}: {len(images.train)} training images, {thinning}, 5 % of false rejects"
    return Table(title=title, header=header, rows=rows)


def share(of: np.ndarray) -> str:
    """How many are True, of how many, with the exact 95 % interval."""
    count = int(of.sum())
    low, high = clopper_pearson(count, len(of))
    return f"{count} of {len(of)} ({100 * low:.0f} to {100 * high:.0f} %)"


@torch.inference_mode()
def splits_table(images: Embedded, thinning: Thinning, numbers: Sequence[int], repeats: int) -> Table:
    """Split all good images at random into n to train on and others to judge, again and again."""
    pool = torch.cat([images.train, images.good])
    rows = []
    for n in numbers:
        calibrations = {LEFT_OUT: lambda bank, seed: bank.left_out()}
        if n <= FEW:
            calibrations["bank made anew without it"] = lambda bank, seed: retrained(bank.patches, thinning, seed)
        if n <= SOME:
            calibrations["5 folds"] = lambda bank, seed: folds(bank.patches, thinning, seed)
        found: dict[tuple[str, float], list[tuple[float, float]]] = {}
        for repeat in range(repeats):
            order = np.random.default_rng(repeat).permutation(len(pool))
            bank = PatchBank(pool[order[:n]], thinning, repeat)
            good, faulty = bank.scores(pool[order[n:]]), bank.scores(images.faulty)
            for kind, calibrate in calibrations.items():
                scores = calibrate(bank, repeat)
                for rate in RATES:
                    verdicts = rejected(scores, good, rate).mean(), rejected(scores, faulty, rate).mean()
                    found.setdefault((kind, rate), []).append(verdicts)
        for (kind, rate), verdicts in found.items():
            wrongly, caught = 100 * np.array(verdicts).T
            rows.append(
                (
                    str(n),
                    kind,
                    f"{100 * rate:g} %",
                    f"{100 * expected_rate(n, rate):.1f} %",
                    f"{wrongly.mean():.1f} ± {wrongly.std(ddof=1) / len(wrongly) ** 0.5:.1f} %",
                    f"{wrongly.min():.0f} to {wrongly.max():.0f} %",
                    f"{caught.mean():.0f} %",
                    f"{caught.min():.0f} to {caught.max():.0f} %",
                )
            )
    header = (
        *("n", "calibrated by", "stated", "to be expected", "good ones rejected"),
        *("in single splits", "defects caught", "in single splits"),
    )
    title = f"{images.category}: {len(pool)} good images in {repeats} random splits, {thinning}"
    return Table(title=title, header=header, rows=rows)
