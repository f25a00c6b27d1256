"""The settings of PatchCore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchcore.config import WEIGHTS, _check_choice

SAMPLER_NAMES = ("approx_greedy_coreset", "greedy_coreset", "identity", "random")


BACKBONE_PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig:
    """The settings of PatchCore: one network, or an ensemble of several.

    `layers` holds the layer names of each backbone, in the order of `backbones`; the first layer of each sets the
    grid of patches. `num_nn` is the number of nearest neighbours whose mean distance is a patch's score. `precision` is
    that of the networks' products; all after them is float32.
    """

    backbones: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    pretrain_embed_dimension: int = 1024
    target_embed_dimension: int = 1024
    patchsize: int = 3
    num_nn: int = 1
    faiss_on_gpu: bool = False
    faiss_num_workers: int | None = None
    precision: str = "float32"
    weights: str = "pretrained"
    weights_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.backbones:
            raise ValueError("at least one backbone is needed: -b NAME")
        if len(self.layers) != len(self.backbones) or not all(self.layers):
            raise ValueError(f"every backbone needs a layer: {self.backbones} with {self.layers}")
        for name in ("pretrain_embed_dimension", "target_embed_dimension", "patchsize", "num_nn"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _check_choice(self, "weights", WEIGHTS)
        _check_choice(self, "precision", BACKBONE_PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class PatchCoreLoaderConfig:
    """Which stored PatchCore models are evaluated, and how they search.

    `paths` holds one model folder for all categories, or one per category in their order. `num_nn` replaces
    the number of neighbours that the models were stored with.
    """

    paths: tuple[Path, ...]
    num_nn: int | None = None
    faiss_on_gpu: bool = False
    faiss_num_workers: int | None = None
    weights_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the memory bank is thinned. `fraction` in (0, 1] is the share of patches kept; identity keeps all."""

    name: str = "approx_greedy_coreset"
    fraction: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in SAMPLER_NAMES:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLER_NAMES)}, got {self.name!r}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"sampler fraction must be in (0, 1], got {self.fraction}")
