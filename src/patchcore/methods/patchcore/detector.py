"""PatchCore (Roth et al. 2021): a bank of good patches; a patch is as anomalous as it is far from the bank.

A detector has one member per backbone. Every batch of images passes through all members, so that an ensemble
reads its images once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchcore.features.encoder import Encoder
from patchcore.methods.batch_scores import BatchScores
from patchcore.methods.detector import Detector
from patchcore.methods.patchcore import METHOD
from patchcore.methods.patchcore.config import INDEX_FILE, ORIGINS_FILE, PatchCoreConfig, member_prefixes
from patchcore.methods.patchcore.explaining import explainer
from patchcore.methods.patchcore.graph import MemberGraph, PatchCoreGraph
from patchcore.methods.patchcore.index_file import read_flat_index, read_origins
from patchcore.methods.patchcore.memory_bank import MemoryBank
from patchcore.methods.patchcore.patch_store import BankSize, PatchStore, expected_bytes, make_stores
from patchcore.methods.patchcore.patches import PatchEmbedding
from patchcore.methods.patchcore.sampler import kept_of, sample
from patchcore.methods.patchcore.search import Apart
from patchcore.methods.patchcore.updating import update
from patchcore.methods.sources import ImageLike
from patchcore.methods.training_images import CHEAP_SECONDS, CHEAP_SHARE, TrainingImages
from patchcore.scoring import anomaly_maps, image_scores, patch_scores
from patchcore.system.timing import StageTimer, progress_bar
from patchcore.types import Evidence, PatchCoreError

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

_LEFT_OUT_AT_A_TIME = 8  # images


class Member:
    """One network of an ensemble, and, once it has learnt, its bank.

    Args:
        encoder: its first layer sets the grid of patches.
        devices: that the bank may be spread over.

    Attributes:
        bank: the patches that it remembers.
        origins: (K,) int64, which of all training patches every row of the bank is; None where the model does not say.
        first_alike: (N,) int32, of every training image itself or the first one with the same pixels, which are left
            out together; None where all differ.
    """

    bank: MemoryBank
    origins: Tensor | None
    first_alike: Tensor | None = None

    def __init__(self, encoder: Encoder, config: PatchCoreConfig, devices: Sequence[torch.device]) -> None:
        self.encoder = encoder
        self.devices = list(devices)
        self.embedding = PatchEmbedding(
            [channels for channels, _, _ in encoder.shapes],
            patchsize=config.patchsize,
            pretrain_dimension=config.pretrain_embed_dimension,
            target_dimension=config.target_embed_dimension,
        ).to(encoder.device)

    @torch.inference_mode()
    def embed(self, images: Tensor, timer: StageTimer) -> Tensor:
        """(B, 3, H, W) uint8 images on any device -> (B, h, w, D) float32 patch embeddings."""
        maps = self.encoder(images, timer)
        with timer("embedding"):
            return self.embedding(maps)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of an image."""
        _, height, width = self.encoder.shapes[0]
        return height, width

    def bank_size(self, num_images: int, config: PatchCoreConfig) -> BankSize:
        """What training on so many images gathers and keeps."""
        patches = num_images * math.prod(self.grid)
        kept = kept_of(patches, *config.thinning)
        return BankSize(patches=patches, kept=kept, dimension=self.embedding.target_dimension)

    def remember(self, features: Tensor, config: PatchCoreConfig, origins: Tensor | None) -> None:
        """Make the bank of (K, D) patches; `origins` as the attribute."""
        self.origins = origins
        self.bank = MemoryBank(
            features.to(self.encoder.device),
            on_gpu=config.faiss_on_gpu,
            num_workers=config.faiss_num_workers,
            devices=self.devices,
        )

    def scores_left_out(self, patches: Tensor, images: Tensor, per_image: int, k: int) -> Tensor:
        """Scores (Q,) of patches of training images by the bank rows that come from other images.

        Args:
            patches: (Q, D).
            images: (Q,) int32, the number of the image that each comes from; images alike are one.
            per_image: patches of an image, of all its views.
            k: neighbours.

        Raises:
            PatchCoreError: fewer than k rows come from other images.
        """
        if self.first_alike is not None:
            images = self.first_alike[images.long()]
        return patch_scores(self.bank.distances(patches, k, Apart(images, self.images_of_rows(per_image))))

    def images_of_rows(self, per_image: int) -> Tensor:
        """(K,) int32, the number of the training image that every row of the bank comes from; images alike are one."""
        if self.origins is None:
            raise ValueError("the bank does not say which images its rows come from")
        images = self.origins // per_image
        return images.int() if self.first_alike is None else self.first_alike[images]


class PatchCore(Detector):
    """One memory bank per member; see `Detector` for the arguments, `PatchCoreConfig` for the settings.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    >>> detector = PatchCore(
    ...     backbones=["efficientnet_lite0"], layers=[["blocks.2"]], weights="random", resize=64, imagesize=64
    ... )
    >>> detector.fit(list(images)).predict(images[0]).map.shape
    (64, 64)
    """

    method = METHOD
    config: PatchCoreConfig

    def prepare(self) -> list[Encoder]:
        config, devices = self.config, self.workspace.devices
        count = len(config.backbones)
        if len(devices) > count and not config.faiss_on_gpu:
            raise PatchCoreError(
                f"{len(devices)} GPUs for {count} backbones: the others have no work unless --faiss_on_gpu spreads the"
                " memory bank over them"
            )
        self.members = []
        shares = devices_of_members(count, devices)
        for backbone, layers, share in zip(config.backbones, config.layers, shares, strict=True):
            encoder = self.workspace.encoder(
                backbone,
                layers,
                size=(self.geometry.imagesize, self.geometry.imagesize),
                precision=config.precision,
                weights=config.weights,
                weights_dir=config.weights_dir,
                device=share[0],
            )
            self.members.append(Member(encoder, config, share))
        return [member.encoder for member in self.members]

    def learn(
        self, images: TrainingImages, generator: torch.Generator, timer: StageTimer, record: Path | None
    ) -> Iterator[BatchScores] | None:
        """Remember good images, see `Detector.learn`; a bank is built at one go, and leaves no record.

        An image is left out by leaving the rows of the finished bank out that come from it. The coreset was chosen with
        them, and would else have kept a few patches of other images in their place: the scores are too high rather than
        too low, and verdicts reject too few good images rather than too many.

        Raises:
            PatchCoreError: the bank would have fewer patches than neighbours are asked for.
        """
        begin = time.perf_counter()
        stores = self._stores(images.count)
        for batch in images.batches:
            for member, store in zip(self.members, stores, strict=True):
                store.add(member.embed(batch, timer))
        grids: list[Tensor] = []
        leave_one_out = images.leave_one_out
        for member in self.members:  # one after the other, so that only one member's patches and bank coexist
            features = stores.pop(0).features()
            thinning = self.config.thinning
            with timer("coreset"), progress_bar("coreset", kept_of(len(features), *thinning), "patch") as bar:
                chosen = sample(features, *thinning, generator, bar.update, member.encoder.device)
            whole = len(chosen) == len(features)
            member.remember(features if whole else features[chosen.to(features.device)], self.config, chosen)
            if leave_one_out:
                member.first_alike = torch.tensor(images.album.first_alike(), dtype=torch.int32)
                with timer("calibration"):
                    most = self._worth(time.perf_counter() - begin) if images.if_cheap else math.inf
                    grid = self.left_out(member, features, images, most_seconds=most)
                leave_one_out = grid is not None
                grids += [] if grid is None else [grid]
        return self.of_grids(grids) if leave_one_out else None

    def _worth(self, spent: float) -> float:
        """Seconds that leaving every photo out of one member's bank may take beside those that were spent."""
        return max(CHEAP_SECONDS, CHEAP_SHARE / (1 - CHEAP_SHARE) * spent) / len(self.members)

    def update(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        *,
        max_bank_size: int | None = None,
        batch_size: int = 8,
    ) -> Self:
        """Learn further images of good parts, without those that were learnt before.

        The greedy selection goes on: as many of the new patches as the sampler's share of them, each the farthest from
        the whole bank, are appended to its rows, which stay as they are. Images that were learnt already are left out.
        New and earlier images calibrate the detector, each left out in turn; of the earlier ones their pictures in the
        model are scored. Without such pictures the new images calibrate it alone.

        Args:
            images: a folder of image files, or images as `predict` takes them.
            max_bank_size: rows that the bank, of an ensemble each bank, has at most; needed for a detector of the
                original's, which does not name its sampler. With it identity keeps the farthest patches, too.
            batch_size: images at a time.

        Raises:
            PatchCoreError: an image cannot be read, all of them are known, or the bank is as large already.
        """
        self._refuse_untrained()
        update(self, images, max_bank_size, batch_size)
        return self

    def left_out(
        self,
        member: Member,
        features: Tensor,
        images: TrainingImages,
        first: int = 0,
        most_seconds: float = math.inf,
    ) -> Tensor | None:
        """(N, h, w) scores of the first view of all photos, each without the bank rows that come from it.

        Args:
            features: (patches of all views of all photos, D).
            first: the number that the first of them has in the bank's origins.
            most_seconds: that it may take.

        Returns:
            None, with a warning, where too few rows are left or the first photos tell that it would take longer.
        """
        of_view = math.prod(member.grid)
        per_image = of_view * images.views
        views = features.unflatten(0, (-1, images.views, of_view))[:, 0]  # (N, P, D)
        if len(member.bank) - int(torch.bincount(member.images_of_rows(per_image)).max()) < self.config.num_nn:
            log.warning(
                "not calibrated, so there are no verdicts: without one of the images the memory bank has fewer patches"
                " than neighbours are asked for"
            )
            return None
        grids: list[Tensor] = []
        begin = time.perf_counter()
        with progress_bar("calibration", len(views), "image") as bar:
            for numbers in torch.arange(len(views), dtype=torch.int32).split(_LEFT_OUT_AT_A_TIME):
                patches = views[numbers[0] : numbers[-1] + 1].flatten(0, 1).to(member.encoder.device)
                photos = first + numbers.repeat_interleave(of_view)
                scores = member.scores_left_out(patches, photos, per_image, self.config.num_nn)
                grids.append(scores.reshape(-1, *member.grid))
                bar.update(len(numbers))
                expected = (time.perf_counter() - begin) / len(numbers) * len(views)
                if len(grids) == 1 and expected > most_seconds:
                    log.warning(
                        "not calibrated, so there are no verdicts: that would take about %.0f s, more than a tenth of"
                        " the training; --calibration leave_one_out does it all the same",
                        expected * len(self.members),
                    )
                    return None
        return torch.cat(grids)

    def of_grids(self, grids: Sequence[Tensor]) -> Iterator[BatchScores]:
        """What members say of images by their (N, h, w) patch scores, a few images at a time."""
        for parts in zip(*(of_member.split(32) for of_member in grids), strict=True):
            yield self._of_batch(parts)

    def _of_batch(self, grids: Sequence[Tensor]) -> BatchScores:
        """What members say of B images by their (B, h, w) patch scores."""
        size = self.geometry.imagesize, self.geometry.imagesize
        return BatchScores(
            scores=_on_one_device([image_scores(grid) for grid in grids]),
            maps=_on_one_device([anomaly_maps(grid, size) for grid in grids]),
        )

    def score(self, images: Tensor, timer: StageTimer) -> BatchScores:
        """Squared distances to the bank, see `Detector.score`."""
        grids = []
        for member in self.members:
            patches = member.embed(images, timer)  # (B, h, w, D)
            with timer("search"):
                distances = member.bank.distances(patches.flatten(0, 2), self.config.num_nn)
                grids.append(patch_scores(distances).reshape(patches.shape[:3]))  # (B, h, w)
        with timer("maps"):
            return self._of_batch(grids)

    def graph(self) -> PatchCoreGraph:
        sides = self.geometry.imagesize, self.geometry.imagesize
        banks = [(member.encoder.graph(), member.embedding, member.bank.features) for member in self.members]
        return PatchCoreGraph([MemberGraph(*parts, self.config.num_nn, sides) for parts in banks])

    def explainer(self) -> Callable[[Tensor], tuple[Evidence, ...]]:
        """Patches of the bank beside those of an image, see `Detector.explainer`."""
        return explainer(self)

    @property
    def num_members(self) -> int:
        return len(self.members)

    def costs(self) -> dict[str, float]:
        """Patches kept, and the size of the banks."""
        banks = [member.bank for member in self.members]
        return {
            "bank_patches": sum(len(bank) for bank in banks),
            "bank_mib": sum(bank.nbytes for bank in banks) / 2**20,
        }

    def expected_bytes(self, num_images: int) -> Mapping[torch.device, int]:
        """What the patches of so many images and building the bank from them take."""
        sizes = [member.bank_size(num_images, self.config) for member in self.members]
        return expected_bytes(sizes, [member.encoder.device for member in self.members])

    def write_arrays(self, folder: Path) -> None:
        for member, prefix in zip(self.members, member_prefixes(len(self.members)), strict=True):
            member.bank.save(folder / f"{prefix}{INDEX_FILE}")
            if member.origins is not None:
                np.save(folder / f"{prefix}{ORIGINS_FILE}", member.origins.numpy())

    def read_arrays(self, folder: Path) -> None:
        dimension = self.config.target_embed_dimension
        for member, prefix in zip(self.members, member_prefixes(len(self.members)), strict=True):
            path = folder / f"{prefix}{INDEX_FILE}"
            features = read_flat_index(path)
            if features.shape[1] != dimension:
                raise PatchCoreError(
                    f"{path}: expected patches of {dimension} values, the model's target_embed_dimension, found"
                    f" {features.shape[1]}"
                )
            member.remember(features, self.config, read_origins(folder / f"{prefix}{ORIGINS_FILE}", len(features)))

    def _stores(self, num_images: int) -> list[PatchStore]:
        """Room for the patches of so many images, for each member where there is some."""
        sizes = [member.bank_size(num_images, self.config) for member in self.members]
        least = min(size.kept for size in sizes)
        if least < self.config.num_nn:
            raise PatchCoreError(
                f"--anomaly_scorer_num_nn {self.config.num_nn} asks for more neighbours than the memory bank will have"
                f" patches, {least}: lower it, or keep more patches (-p)"
            )
        return make_stores(sizes, [member.encoder.device for member in self.members])


def _on_one_device(values: Sequence[Tensor]) -> Tensor:
    """The values of all members, (M, ...), on the first one's device."""
    return torch.stack([value.to(values[0].device) for value in values])


def devices_of_members(members: int, devices: Sequence[torch.device]) -> list[list[torch.device]]:
    """Deal devices out to the members of an ensemble; members share one only where there are too few."""
    return [list(devices[index::members]) or [devices[index % len(devices)]] for index in range(members)]
