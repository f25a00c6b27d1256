"""PatchCore (Roth et al. 2021): a bank of good patches; a patch is as anomalous as it is far from the bank.

A detector has one member per backbone. Every batch of images passes through all members, so that an ensemble
reads its images once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from patchcore.backbones.build import load_backbone
from patchcore.config import TrainedOn
from patchcore.features.cache import FeatureCache
from patchcore.features.encoder import ImageFeatures
from patchcore.features.extractor import FeatureExtractor
from patchcore.methods.patchcore.config import PatchCoreConfig, PatchCoreLoaderConfig, SamplerConfig
from patchcore.methods.patchcore.index_file import read_flat_index
from patchcore.methods.patchcore.memory_bank import MemoryBank
from patchcore.methods.patchcore.model_files import (
    INDEX_FILE,
    PARAMS_FILE,
    MemberParams,
    StoredModel,
    prefixes_of,
    write_params,
)
from patchcore.methods.patchcore.patch_store import BankSize, PatchStore, expected_bytes, places
from patchcore.methods.patchcore.patches import PatchEmbedding
from patchcore.methods.patchcore.sampler import kept_of, sample
from patchcore.scoring import anomaly_maps, ensemble_mean, image_scores, patch_scores
from patchcore.system.devices import warn_of_slow_precision
from patchcore.system.memory import format_bytes
from patchcore.system.timing import StageTimer, progress_bar
from patchcore.types import Output, PatchCoreError

log = logging.getLogger(__name__)


class PatchEmbedder(nn.Module):
    """A frozen backbone and the patch embedding on its layers."""

    def __init__(
        self,
        config: PatchCoreConfig,
        index: int,
        imagesize: int,
        devices: Sequence[torch.device],
        cache: FeatureCache | None = None,
    ) -> None:
        """Load backbone number `index`; it runs on the first of the devices, its bank may be spread over all."""
        super().__init__()
        device = devices[0]
        backbone = load_backbone(config.backbones[index], weights=config.weights, weights_dir=config.weights_dir)
        self.extractor = FeatureExtractor(backbone, config.layers[index], config.precision).to(device)
        shapes = self.extractor.layer_shapes((imagesize, imagesize))
        _, *self.grid = next(iter(shapes.values()))  # patches along the height and the width of an image
        self.embedding = PatchEmbedding(
            [channels for channels, _, _ in shapes.values()],
            patchsize=config.patchsize,
            pretrain_dimension=config.pretrain_embed_dimension,
            target_dimension=config.target_embed_dimension,
        ).to(device)
        self.features = ImageFeatures(self.extractor, cache)
        self.device = device
        self.devices = list(devices)

    @torch.inference_mode()
    def forward(self, images: Tensor, timer: StageTimer) -> Tensor:
        """(B, 3, H, W) uint8 images on any device -> (B, h, w, D) float32 patch embeddings."""
        maps = self.features(images, timer)
        with timer("embedding"):
            return self.embedding(maps)


class PatchCore:
    """The detector. `fit` builds one memory bank per member, `predict` measures the distance to it.

    Args:
        embedders: one per member; they may be shared between detectors.
        config: the settings; `config.num_nn` neighbours make a patch score.
        sampler: how the bank is thinned; None for a loaded detector whose sampler is not known, which cannot be fitted.
        trained_on: stored with the model, so that it is given images of the same geometry later.
    """

    def __init__(
        self,
        embedders: Sequence[PatchEmbedder],
        config: PatchCoreConfig,
        sampler: SamplerConfig | None,
        trained_on: TrainedOn,
    ) -> None:
        self.embedders = list(embedders)
        self.config = config
        self.sampler = sampler
        self.trained_on = trained_on
        self.banks_: list[MemoryBank] = []

    def fit(
        self,
        batches: Iterable[Tensor],
        num_images: int,
        generator: torch.Generator,
        timer: StageTimer,
        folder: Path | None = None,
    ) -> PatchCore:
        """Remember good images.

        Args:
            batches: (B, 3, H, W) uint8 images, `num_images` in all.
            generator: a CPU generator, the source of every random choice.
            timer: told how long each stage took.
            folder: not used: a bank is built at one go, and leaves no record.

        Raises:
            PatchCoreError: the bank would have fewer patches than neighbours are asked for.
        """
        if self.sampler is None:
            raise ValueError("the original's folders do not name a sampler: fit a detector that has one")
        sizes = bank_sizes(self.embedders, self.sampler, num_images)
        if any(size.kept < self.config.num_nn for size in sizes):
            raise PatchCoreError(
                f"--anomaly_scorer_num_nn {self.config.num_nn} asks for more neighbours than the memory bank will have"
                f" patches, {min(size.kept for size in sizes)}: lower it, or keep more patches (-p)"
            )
        devices = [embedder.device for embedder in self.embedders]
        stores = []
        for size, device, place in zip(sizes, devices, places(sizes, devices), strict=True):
            if place != device:
                log.info(
                    "%s has no room for %s of patches: the host keeps them", device, format_bytes(size.store_bytes)
                )
            stores.append(PatchStore(size, place))
        for images in batches:
            for embedder, store in zip(self.embedders, stores, strict=True):
                store.add(embedder(images, timer))
        self.banks_ = []
        for embedder in self.embedders:  # one after the other, so that only one member's patches and bank coexist
            features = stores.pop(0).features()
            with timer("coreset"), progress_bar("coreset", kept_of(len(features), self.sampler), "patch") as bar:
                chosen = sample(features, self.sampler, generator, bar.update, embedder.device)
            whole = len(chosen) == len(features)
            kept = features if whole else features[chosen.to(features.device)]
            self.banks_.append(self._bank(kept.to(embedder.device), embedder))
        return self

    def predict(self, batches: Iterable[Tensor], timer: StageTimer) -> Output:
        """Score images.

        Args:
            batches: (B, 3, H, W) uint8 images.
            timer: told how long each stage took.

        Returns:
            Scores and maps, the higher the more anomalous: of one member its mean squared distances, of several the
            mean after each was min-max normalised over all of these images.
        """
        scores: list[list[Tensor]] = [[] for _ in self.banks_]
        maps: list[list[Tensor]] = [[] for _ in self.banks_]
        for images in batches:
            for member, (embedder, bank) in enumerate(zip(self.embedders, self.banks_, strict=True)):
                patches = embedder(images, timer)  # (B, h, w, D)
                with timer("search"):
                    distances = bank.distances(patches.flatten(0, 2), self.config.num_nn)
                with timer("maps"):
                    grid = patch_scores(distances).reshape(patches.shape[:3])  # (B, h, w)
                    scores[member].append(image_scores(grid))
                    maps[member].append(anomaly_maps(grid, tuple(images.shape[-2:])))
        raw_scores = np.stack([torch.cat(member).cpu().numpy().astype(np.float64) for member in scores])
        return Output(
            scores=ensemble_mean(raw_scores),
            maps=ensemble_mean([torch.cat(member).cpu().numpy() for member in maps]),
            raw_scores=raw_scores,
        )

    def costs(self) -> dict[str, float]:
        """What the fitted detector takes: patches kept, and the size of the banks."""
        return {
            "bank_patches": sum(len(bank) for bank in self.banks_),
            "bank_mib": sum(bank.nbytes for bank in self.banks_) / 2**20,
        }

    def save(self, folder: Path) -> None:
        """Write every member's bank and parameters into an existing folder."""
        for index, (bank, prefix) in enumerate(zip(self.banks_, prefixes_of(len(self.banks_)), strict=True)):
            params = MemberParams(
                backbone=self.config.backbones[index],
                weights=self.config.weights,
                layers=self.config.layers[index],
                pretrain_embed_dimension=self.config.pretrain_embed_dimension,
                target_embed_dimension=self.config.target_embed_dimension,
                patchsize=self.config.patchsize,
                num_nn=self.config.num_nn,
                precision=self.config.precision,
                sampler=self.sampler and self.sampler.name,
                fraction=self.sampler and self.sampler.fraction,
                **asdict(self.trained_on),
            )
            bank.save(folder / f"{prefix}{INDEX_FILE}")
            write_params(folder / f"{prefix}{PARAMS_FILE}", params)

    @classmethod
    def load(cls, model: StoredModel, embedders: Sequence[PatchEmbedder]) -> PatchCore:
        """Read the banks of a stored detector.

        Args:
            model: from `read_model`.
            embedders: from `load_embedders` with the configuration and image size of `model`; they may be shared.

        Raises:
            PatchCoreError: a bank is missing, damaged, or does not fit the parameters.
        """
        detector = cls(embedders, model.config, model.sampler, model.trained_on)
        dimension = model.config.target_embed_dimension
        for embedder, prefix in zip(detector.embedders, prefixes_of(len(detector.embedders)), strict=True):
            path = model.folder / f"{prefix}{INDEX_FILE}"
            features = read_flat_index(path)
            if features.shape[1] != dimension:
                raise PatchCoreError(
                    f"{path}: expected patches of {dimension} values, the model's target_embed_dimension, found"
                    f" {features.shape[1]}"
                )
            detector.banks_.append(detector._bank(features.to(embedder.device), embedder))
        return detector

    def _bank(self, features: Tensor, embedder: PatchEmbedder) -> MemoryBank:
        return MemoryBank(
            features,
            on_gpu=self.config.faiss_on_gpu,
            num_workers=self.config.faiss_num_workers,
            devices=embedder.devices,
        )


def load_embedders(
    config: PatchCoreConfig, imagesize: int, devices: Sequence[torch.device], cache: FeatureCache | None = None
) -> list[PatchEmbedder]:
    """Load every backbone of a configuration, the members spread over the devices.

    Raises:
        PatchCoreError: there are devices that would have nothing to do.
    """
    members = len(config.backbones)
    if len(devices) > members and not config.faiss_on_gpu:
        raise PatchCoreError(
            f"{len(devices)} GPUs for {members} backbones: the others have no work unless --faiss_on_gpu spreads the"
            " memory bank over them"
        )
    warn_of_slow_precision(config.precision, devices[0])
    shares = devices_of_members(members, devices)
    return [PatchEmbedder(config, index, imagesize, share, cache) for index, share in enumerate(shares)]


def bank_sizes(embedders: Sequence[PatchEmbedder], sampler: SamplerConfig, num_images: int) -> list[BankSize]:
    """What training on so many images gathers and keeps, by member."""
    patches = [num_images * math.prod(embedder.grid) for embedder in embedders]
    return [
        BankSize(patches=count, kept=kept_of(count, sampler), dimension=embedder.embedding.target_dimension)
        for count, embedder in zip(patches, embedders, strict=True)
    ]


def devices_of_members(members: int, devices: Sequence[torch.device]) -> list[list[torch.device]]:
    """Deal devices out to the members of an ensemble; members share one only where there are too few."""
    return [list(devices[index::members]) or [devices[index % len(devices)]] for index in range(members)]


class TrainedPatchCore:
    """The method that fits a fresh detector for every category; all of them share the loaded backbones."""

    fits = True

    def __init__(
        self,
        config: PatchCoreConfig,
        sampler: SamplerConfig,
        trained_on: TrainedOn,
        devices: Sequence[torch.device],
        cache: FeatureCache | None = None,
    ) -> None:
        self.device = devices[0]
        self.cache = cache
        self.settings = {"patch_core": config, "sampler": sampler}
        self._sampler = sampler
        self._embedders = load_embedders(config, trained_on.imagesize, devices, cache)
        self._detector = partial(PatchCore, self._embedders, config, sampler, trained_on)

    def detector(self, category: str) -> PatchCore:
        """A detector that remembers nothing yet."""
        return self._detector()

    def expected_bytes(self, num_images: int) -> dict[torch.device, int]:
        """What the patches of so many images and building the bank from them take, by device."""
        sizes = bank_sizes(self._embedders, self._sampler, num_images)
        return expected_bytes(sizes, [embedder.device for embedder in self._embedders])


class StoredPatchCore:
    """The method that loads a stored detector for every category; equal configurations share their backbones.

    Args:
        models: category -> its model, which may be the same for several.
        loader: what the models were read with, for the record.
        devices: the members are spread over them in turn.
    """

    fits = False

    def __init__(
        self,
        models: Mapping[str, StoredModel],
        loader: PatchCoreLoaderConfig,
        devices: Sequence[torch.device],
        cache: FeatureCache | None = None,
    ) -> None:
        self.device = devices[0]
        self.cache = cache
        self.settings = {"patch_core_loader": loader, "models": dict(models)}
        self._models = dict(models)
        self._embedders: dict[tuple[PatchCoreConfig, int], list[PatchEmbedder]] = {}
        for model in models.values():
            key = model.config, model.trained_on.imagesize
            if key not in self._embedders:
                self._embedders[key] = load_embedders(*key, devices, cache)

    def detector(self, category: str) -> PatchCore:
        """The detector that is stored for a category."""
        model = self._models[category]
        return PatchCore.load(model, self._embedders[model.config, model.trained_on.imagesize])

    def expected_bytes(self, num_images: int) -> dict[torch.device, int]:
        """Nothing: no detector is trained."""
        return {}
