"""What the stages work on: images, their patch embeddings, and coresets of them, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.machine import Floors
from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import load_image
from patchcore.datasets.layout import scan_test, scan_train
from patchcore.datasets.loader import VIEWS, ImageDataset
from patchcore.features.workspace import Workspace
from patchcore.methods.patchcore.config import PatchCoreConfig
from patchcore.methods.patchcore.coreset import approx_initial_distances, greedy_order, project
from patchcore.methods.patchcore.detector import Member, PatchCore
from patchcore.synthetic.generate import generate, render
from patchcore.system.timing import StageTimer
from patchcore.types import Sample

GEOMETRY = Geometry(resize=256, imagesize=224)
GRID = 28 * 28  # patches of an image at that size
FRACTION = 0.1
BATCH = 8
CATEGORY = "metal_plate"
LITE0 = PatchCoreConfig(backbones=("efficientnet_lite0",), layers=(("blocks.2", "blocks.4"),), fraction=FRACTION)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run of the benchmarks is told.

    Attributes:
        sizes: numbers of training images, ascending.
        data: folder of a data set in MPDD's layout that holds `CATEGORY`; None draws images.
        scratch: a folder for whatever is written.
        whole_reference: pick one by one to the end, however long it takes.
    """

    device: torch.device
    sizes: tuple[int, ...]
    repeats: int
    quick: bool
    scratch: Path
    data: Path | None = None
    whole_reference: bool = False


class Inputs:
    """Real patch embeddings in the sizes asked for: random numbers would not tell what a bound can prune.

    Where a data set has fewer images than asked for, they come again turned and mirrored, as the embedding of a
    turned part differs from that of the part.
    """

    def __init__(self, settings: Settings, floors: Floors) -> None:
        self.settings = settings
        self.floors = floors
        self._coresets: dict[int, Tensor] = {}

    @property
    def source(self) -> str:
        """Where the images come from, for the report."""
        if self.settings.data is None:
            return "drawn metal plates"
        most = max(self.settings.sizes)
        turned = f", turned and mirrored to make {most}" if most > len(self._samples[0]) else ""
        return f"{len(self._samples[0])} training images of {CATEGORY}{turned}"

    @cached_property
    def data_folder(self) -> Path:
        """A data set with as many images as MPDD's metal_plate, of 512 x 512: the one given, or a drawn one."""
        if self.settings.data is not None:
            return self.settings.data
        folder = self.settings.scratch / "drawn"
        counts = {"num_train": 54, "num_test_good": 25, "num_per_defect": 18}
        if self.settings.quick:
            counts = {"num_train": 2, "num_test_good": 2, "num_per_defect": 1}
        generate(folder, categories=[CATEGORY], size=256 if self.settings.quick else 512, **counts)
        return folder

    @cached_property
    def _samples(self) -> tuple[list, list]:
        return scan_train(self.settings.data, CATEGORY), scan_test(self.settings.data, CATEGORY)[0]

    def images(self, count: int, *, test: bool = False) -> Tensor:
        """(count, 3, 224, 224) uint8 images of good parts, or with `test` of good and faulty ones."""
        if self.settings.data is None:
            folders = ("test/good", "test/scratches") if test else ("train/good",)
            pictures = [render(CATEGORY, folders[i % len(folders)], i // len(folders)).image for i in range(count)]
            images = [torch.from_numpy(picture)[16:240, 16:240].permute(2, 0, 1) for picture in pictures]
            return torch.stack(images)
        samples = _spread(self._samples[test], count)
        if count > VIEWS * len(samples):
            raise ValueError(f"{len(samples)} images give {VIEWS * len(samples)} views, {count} were asked for")
        views = ImageDataset(samples, GEOMETRY, augment=True)  # all views of an image in a row
        return torch.stack([views[i % len(samples) * VIEWS + i // len(samples)] for i in range(count)])

    def pictures(self, count: int) -> list[NDArray[np.uint8]]:
        """At most `count` test images of all kinds as they are decoded: (H, W, 3) uint8, not resized."""
        samples, _ = scan_test(self.data_folder, CATEGORY)
        return [np.asarray(load_image(sample.path)) for sample in _spread(samples, count)]

    @cached_property
    def workspace(self) -> Workspace:
        """The networks, each loaded once."""
        return Workspace([self.settings.device], checksums=False)

    def detector(self, config: PatchCoreConfig) -> PatchCore:
        """A detector that is not fitted yet."""
        size = {"resize": GEOMETRY.resize, "imagesize": GEOMETRY.imagesize}
        return PatchCore(config, workspace=self.workspace, **size)

    @cached_property
    def _member(self) -> Member:
        """EfficientNet-Lite0 with its ImageNet weights, which need no download."""
        return self.detector(LITE0).members[0]

    def _embed(self, images: Tensor) -> Tensor:
        timer = StageTimer(self.settings.device)
        out: Tensor | None = None
        for start in range(0, len(images), BATCH):
            patches = self._member.embed(images[start : start + BATCH], timer).flatten(0, 2)
            if out is None:
                out = patches.new_empty(len(images) * GRID, patches.shape[1])
            out[start * GRID : start * GRID + len(patches)] = patches
        assert out is not None
        return out

    @cached_property
    def _embeddings(self) -> Tensor:
        return self._embed(self.images(max(self.settings.sizes)))

    @cached_property
    def _points(self) -> Tensor:
        return project(self._embeddings, torch.Generator().manual_seed(0))

    def embeddings(self, count: int) -> Tensor:
        """(count * 784, 1024) float32 patch embeddings of the first `count` training images."""
        return self._embeddings[: count * GRID]

    def points(self, count: int) -> Tensor:
        """(count * 784, 128) float32, projected as for the coreset."""
        return self._points[: count * GRID]

    @cached_property
    def queries(self) -> Tensor:
        """(Q, 1024) float32 patch embeddings of a batch of test images."""
        return self._embed(self.images(2 if self.settings.quick else BATCH, test=True))

    def start(self, count: int) -> Tensor:
        """(N,) distances that the coreset of the first `count` images starts from."""
        points = self.points(count)
        starts = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:10]
        return approx_initial_distances(points, starts)

    def bank(self, count: int) -> Tensor:
        """(N / 10, 1024) float32: the coreset of the first `count` images' patches."""
        if count not in self._coresets:
            picks = int(FRACTION * count * GRID)
            self._coresets[count] = greedy_order(self.points(count), self.start(count), picks)
        return self.embeddings(count)[self._coresets[count].to(self.settings.device)]


def _spread(samples: Sequence[Sample], count: int) -> Sequence[Sample]:
    """At most `count` of the samples, over their whole length: of test images all kinds."""
    return samples[:: max(1, len(samples) // count)][:count]
