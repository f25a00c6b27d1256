"""Does leaving images out of a finished bank lead to the stated rate? Drawn patches, the real sampler and search."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.drawn_scores import mean_and_error
from benchmarks.left_out import PatchBank, Thinning, expected_rate, rejected, retrained
from benchmarks.measure import Table

PATCHES, DIMENSION = 49, 16  # of an image
KINDS_OF_PATCHES = 12  # where patches cluster
FRESH = 200  # good images that every calibration judges
RATE = 0.05

WORLDS = ("one cloud", "clusters")
CORESET = Thinning()
THINNINGS = (
    CORESET,
    Thinning(fraction=0.01),
    Thinning(sampler="random"),
    Thinning(sampler="identity"),
)


def draw_images(world: str, count: int, generator: torch.Generator) -> Tensor:
    """(count, P, D) patches of good images.

    "one cloud": normal, and every image is shifted by half a standard deviation. "clusters": besides, each position of
    an image belongs to one of 12 kinds, and images differ in how much their patches scatter: a few stand far above the
    others.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    patches = normal(count, PATCHES, DIMENSION)
    if world == "clusters":
        patches *= (0.3 * normal(count, 1, 1)).exp()
    patches += 0.5 * normal(count, 1, DIMENSION)
    if world == "clusters":
        centres = 3 * torch.randn(KINDS_OF_PATCHES, DIMENSION, generator=torch.Generator().manual_seed(1))
        patches += centres[torch.arange(PATCHES) % KINDS_OF_PATCHES]
    return patches


@torch.inference_mode()
def left_out_table(numbers: dict[int, int], retrained_up_to: int) -> Table:
    """Realised rates by how the scores of the training images are made.

    Args:
        numbers: of training images -> calibrations.
        retrained_up_to: so many images really leaving one out is measured.
    """
    rows = []
    for world in WORLDS:
        for thinning in THINNINGS:
            for n, repeats in numbers.items():
                if thinning.fraction * n * PATCHES < 10 or (thinning.sampler == "identity" and n > 50):
                    continue  # too few rows to leave some out; and where nothing is chosen, n does not matter
                with_retraining = thinning.sampler == CORESET.sampler and n <= retrained_up_to
                found: dict[str, list[float]] = {"left out": [], "retrained": [], "in sample": []}
                for repeat in range(repeats):
                    generator = torch.Generator().manual_seed(1000 * n + repeat)
                    bank = PatchBank(draw_images(world, n, generator), thinning, repeat)
                    fresh = bank.scores(draw_images(world, FRESH, generator))
                    found["left out"].append(rejected(bank.left_out(), fresh, RATE).mean())
                    found["in sample"].append(rejected(bank.in_sample(), fresh, RATE).mean())
                    if with_retraining:
                        scores = retrained(bank.patches, thinning, repeat)
                        found["retrained"].append(rejected(scores, fresh, RATE).mean())
                rates = {name: np.array(values) for name, values in found.items()}
                rows.append(
                    (
                        world,
                        str(thinning),
                        str(n),
                        f"{100 * expected_rate(n, RATE):.1f} %",
                        mean_and_error(rates["left out"]),
                        mean_and_error(rates["retrained"]) if with_retraining else "-",
                        f"{100 * rates['in sample'].mean():.0f} %",
                    )
                )
    header = (
        *("images", "bank", "n", "to be expected", "left out of the finished bank", "bank made anew without it"),
        "by the whole bank",
    )
    return Table(title=f"PatchCore on drawn patches, {100 * RATE:g} % stated", header=header, rows=rows)


def frames(parts: Tensor, of_part: int, jitter: float, generator: torch.Generator) -> Tensor:
    """(N, P, D) parts -> (N * of_part, P, D), so many photos of each that differ by a little noise, in a row."""
    photos = parts.repeat_interleave(of_part, dim=0)
    return photos + jitter * torch.randn(photos.shape, generator=generator)


@torch.inference_mode()
def duplicates_table(photos: int, repeats: int) -> Table:
    """Realised rates on new parts where several training photos show the same part."""
    rows = []
    for of_part in (1, 2, 5):
        for jitter in (0.1, 0.3, 0.6) if of_part > 1 else (0.3,):
            found: dict[str, list[float]] = {"all": [], "one a part": [], "other parts": []}
            for repeat in range(repeats):
                generator = torch.Generator().manual_seed(repeat)
                images = frames(draw_images("clusters", photos // of_part, generator), of_part, jitter, generator)
                new, other = (
                    frames(draw_images("clusters", count, generator), 1, jitter, generator) for count in (FRESH, 20)
                )
                bank = PatchBank(images, CORESET, repeat)
                fresh = bank.scores(new)
                found["all"].append(rejected(bank.left_out(), fresh, RATE).mean())
                found["other parts"].append(rejected(bank.scores(other), fresh, RATE).mean())
                if of_part > 1:
                    single = PatchBank(images[::of_part], CORESET, repeat)
                    found["one a part"].append(rejected(single.left_out(), single.scores(new), RATE).mean())
            rates = {name: np.array(values) for name, values in found.items()}
            rows.append(
                (
                    f"{of_part} of each of {photos // of_part} parts",
                    f"{jitter:g}" if of_part > 1 else "-",
                    mean_and_error(rates["all"]),
                    f"{mean_and_error(rates['one a part'])} (of {100 * expected_rate(photos // of_part, RATE):.1f} %)"
                    if of_part > 1
                    else "-",
                    f"{mean_and_error(rates['other parts'])} (of {100 * expected_rate(20, RATE):.1f} %)",
                )
            )
    expected = f"{100 * expected_rate(photos, RATE):.1f} %"
    header = (
        *("training photos", "noise between them", f"one photo left out (of {expected})"),
        *("one photo of each part, left out", "calibrated with photos of 20 other parts"),
    )
    title = f"{photos} training photos, some of the same part, {100 * RATE:g} % stated, new parts judged"
    return Table(title=title, header=header, rows=rows)
