"""PatchCore (Roth et al. 2021): a bank of good patches; a patch is as anomalous as it is far from the bank.

A detector has one member per backbone. Every batch of images passes through all members, so that an ensemble
reads its images once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchcore.backbones import load_backbone
from patchcore.config import PatchCoreConfig, SamplerConfig
from patchcore.features import FeatureExtractor, normalise
from patchcore.memory_bank import MemoryBank, read_flat_index
from patchcore.patches import PatchEmbedding
from patchcore.runtime import StageTimer, progress_bar
from patchcore.sampler import sample
from patchcore.scoring import anomaly_maps, ensemble_mean, image_scores, patch_scores
from patchcore.types import Output, PatchCoreError

INDEX_FILE = "nnscorer_search_index.faiss"
PARAMS_FILE = "patchcore_params.json"
FORMAT = 1  # of PARAMS_FILE


@dataclass(frozen=True, kw_only=True)
class MemberParams:
    """What, beside the bank, makes a stored member give the same scores again."""

    backbone: str
    weights: str
    layers: tuple[str, ...]
    pretrain_embed_dimension: int
    target_embed_dimension: int
    patchsize: int
    num_nn: int
    resize: int
    imagesize: int
    sampler: str
    fraction: float
    format: int = FORMAT


class PatchEmbedder(nn.Module):
    """A frozen backbone and the patch embedding on its layers."""

    def __init__(self, config: PatchCoreConfig, index: int, imagesize: int, device: torch.device) -> None:
        super().__init__()
        backbone = load_backbone(config.backbones[index], weights=config.weights, weights_dir=config.weights_dir)
        self.extractor = FeatureExtractor(backbone, config.layers[index]).to(device)
        shapes = self.extractor.layer_shapes((imagesize, imagesize))
        self.embedding = PatchEmbedding(
            [channels for channels, _, _ in shapes.values()],
            patchsize=config.patchsize,
            pretrain_dimension=config.pretrain_embed_dimension,
            target_dimension=config.target_embed_dimension,
        ).to(device)
        self.device = device

    @torch.inference_mode()
    def forward(self, images: Tensor, timer: StageTimer) -> Tensor:
        """(B, 3, H, W) uint8 images on any device -> (B, h, w, D) float32 patch embeddings."""
        with timer("backbone"):
            maps = self.extractor(normalise(images.to(self.device, non_blocking=True)))
        with timer("embedding"):
            return self.embedding(list(maps.values()))


class PatchCore:
    """The detector. `fit` builds one memory bank per member, `predict` measures the distance to it.

    Args:
        embedders: one per member; they may be shared between detectors.
        config: the settings; `config.num_nn` neighbours make a patch score.
        sampler: how the bank is thinned.
        resize, imagesize: the geometry of the images that it will see, stored with the model.
    """

    def __init__(
        self,
        embedders: Sequence[PatchEmbedder],
        config: PatchCoreConfig,
        sampler: SamplerConfig,
        *,
        resize: int,
        imagesize: int,
    ) -> None:
        self.embedders = list(embedders)
        self.config = config
        self.sampler = sampler
        self.resize = resize
        self.imagesize = imagesize
        self.banks_: list[MemoryBank] = []

    def fit(
        self, batches: Iterable[Tensor], num_images: int, generator: torch.Generator, timer: StageTimer
    ) -> PatchCore:
        """Remember good images.

        Args:
            batches: (B, 3, H, W) uint8 images, `num_images` in all.
            generator: a CPU generator, the source of every random choice.
            timer: told how long each stage took.
        """
        stores = [_PatchStore(num_images) for _ in self.embedders]
        for images in batches:
            for embedder, store in zip(self.embedders, stores, strict=True):
                store.add(embedder(images, timer))
        self.banks_ = []
        while stores:  # one after the other, so that only one member's patches and bank coexist
            features = stores.pop(0).features()
            kept = int(self.sampler.fraction * len(features))
            with timer("coreset"), progress_bar("coreset", kept, "patch") as bar:
                chosen = sample(features, self.sampler, generator, bar.update)
            whole = len(chosen) == len(features)
            self.banks_.append(self._bank(features if whole else features[chosen.to(features.device)]))
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
        for index, (bank, prefix) in enumerate(zip(self.banks_, _prefixes(len(self.banks_)), strict=True)):
            params = MemberParams(
                backbone=self.config.backbones[index],
                weights=self.config.weights,
                layers=self.config.layers[index],
                pretrain_embed_dimension=self.config.pretrain_embed_dimension,
                target_embed_dimension=self.config.target_embed_dimension,
                patchsize=self.config.patchsize,
                num_nn=self.config.num_nn,
                resize=self.resize,
                imagesize=self.imagesize,
                sampler=self.sampler.name,
                fraction=self.sampler.fraction,
            )
            bank.save(folder / f"{prefix}{INDEX_FILE}")
            (folder / f"{prefix}{PARAMS_FILE}").write_text(json.dumps(asdict(params), indent=2) + "\n")

    @classmethod
    def load(
        cls,
        folder: Path,
        devices: Sequence[torch.device],
        *,
        faiss_on_gpu: bool = False,
        faiss_num_workers: int | None = None,
        weights_dir: Path | None = None,
    ) -> PatchCore:
        """Read a stored detector; nothing in the folder is executed.

        Raises:
            PatchCoreError: a file is missing, damaged, or does not fit the others.
        """
        members = [read_params(folder / f"{prefix}{PARAMS_FILE}") for prefix in _stored_prefixes(folder)]
        first = members[0]
        shared = ("weights", "pretrain_embed_dimension", "target_embed_dimension", "patchsize", "num_nn")
        config = PatchCoreConfig(
            backbones=tuple(member.backbone for member in members),
            layers=tuple(member.layers for member in members),
            **{name: getattr(first, name) for name in shared},
            faiss_on_gpu=faiss_on_gpu,
            faiss_num_workers=faiss_num_workers,
            weights_dir=weights_dir,
        )
        detector = cls(
            load_embedders(config, first.imagesize, devices),
            config,
            SamplerConfig(name=first.sampler, fraction=first.fraction),
            resize=first.resize,
            imagesize=first.imagesize,
        )
        for embedder, prefix in zip(detector.embedders, _prefixes(len(members)), strict=True):
            path = folder / f"{prefix}{INDEX_FILE}"
            features = read_flat_index(path)
            if features.shape[1] != config.target_embed_dimension:
                raise PatchCoreError(
                    f"{path}: patches of {features.shape[1]} values, but {PARAMS_FILE} says"
                    f" target_embed_dimension {config.target_embed_dimension}"
                )
            detector.banks_.append(detector._bank(features.to(embedder.device)))
        return detector

    def _bank(self, features: Tensor) -> MemoryBank:
        return MemoryBank(features, on_gpu=self.config.faiss_on_gpu, num_workers=self.config.faiss_num_workers)


def load_embedders(config: PatchCoreConfig, imagesize: int, devices: Sequence[torch.device]) -> list[PatchEmbedder]:
    """Load every backbone of a configuration, the members spread over the devices in turn."""
    return [
        PatchEmbedder(config, index, imagesize, devices[index % len(devices)]) for index in range(len(config.backbones))
    ]


class TrainedPatchCore:
    """The method that fits a fresh detector for every category; all of them share the loaded backbones."""

    fits = True

    def __init__(
        self,
        config: PatchCoreConfig,
        sampler: SamplerConfig,
        *,
        resize: int,
        imagesize: int,
        devices: Sequence[torch.device],
    ) -> None:
        self.device = devices[0]
        self.settings = {"patch_core": config, "sampler": sampler}
        self._embedders = load_embedders(config, imagesize, devices)
        self._detector = partial(PatchCore, self._embedders, config, sampler, resize=resize, imagesize=imagesize)

    def detector(self, category: str) -> PatchCore:
        """A detector that remembers nothing yet."""
        return self._detector()


def read_params(path: Path) -> MemberParams:
    """Read a member's stored parameters.

    Raises:
        PatchCoreError: the file is missing, no JSON, of another format, or has other fields than expected.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        params = MemberParams(**{**stored, "layers": tuple(stored["layers"])})
    except OSError as error:
        raise PatchCoreError(f"{path}: cannot read the model: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise PatchCoreError(f"{path}: expected the parameters of a PatchCore model: {error}") from error
    if params.format != FORMAT:
        raise PatchCoreError(f"{path}: format {params.format}, this version reads format {FORMAT}")
    return params


def _prefixes(count: int) -> list[str]:
    """File name prefixes of the members, as in the original: none for a single one."""
    return [""] if count == 1 else [f"Ensemble-{index + 1}-{count}_" for index in range(count)]


def _stored_prefixes(folder: Path) -> list[str]:
    """The prefixes that a model folder holds."""
    if (folder / PARAMS_FILE).is_file():
        return _prefixes(1)
    found = sorted(path.name for path in folder.glob(f"Ensemble-*_{PARAMS_FILE}"))
    if not found:
        raise PatchCoreError(f"no PatchCore model in {folder}: expected {PARAMS_FILE} and {INDEX_FILE}")
    count = found[0].split("_")[0].rsplit("-", 1)[1]
    expected = _prefixes(int(count)) if count.isdigit() else []
    if {f"{prefix}{PARAMS_FILE}" for prefix in expected} != set(found):
        raise PatchCoreError(f"incomplete ensemble in {folder}: found {', '.join(found)}")
    return expected


class _PatchStore:
    """Collects the patches of a known number of images without holding them twice."""

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self._features: Tensor | None = None
        self._filled = 0

    def add(self, patches: Tensor) -> None:
        """Append (B, h, w, D) patches."""
        if self._features is None:
            rows = self._num_images * patches[0, ..., 0].numel()
            self._features = patches.new_empty(rows, patches.shape[-1])
        rows = patches.flatten(0, 2)
        self._features[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def features(self) -> Tensor:
        """All patches, (N, D)."""
        if self._features is None or self._filled != len(self._features):
            raise ValueError(f"expected the patches of {self._num_images} images, got {self._filled} patches")
        return self._features
