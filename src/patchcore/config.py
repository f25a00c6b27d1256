"""The settings of a run: frozen, checked when made, and written to YAML. No torch here, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLER_NAMES = ("approx_greedy_coreset", "greedy_coreset", "identity", "random")
WEIGHTS = ("pretrained", "random")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run goes, on what it runs, and what it leaves beside `results.csv`."""

    results_path: Path
    gpu: tuple[int, ...] = (0,)
    seed: int = 0
    log_group: str = "group"
    log_project: str = "project"
    save_model: bool = False
    save_segmentation_images: bool = False
    save_anomaly_scores: bool = False

    def __post_init__(self) -> None:
        for name in ("log_group", "log_project"):
            value = getattr(self, name)
            if not value or Path(value).name != value or value.startswith("."):
                raise ValueError(f"--{name} must be the name of a folder, got {value!r}")
        if len(set(self.gpu)) != len(self.gpu):
            raise ValueError(f"every --gpu once, got {' '.join(map(str, self.gpu))}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must be in [0, 2**63), got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which images are read and how they reach the network.

    `train_val_split` in (0, 1] is the share of the training images that is trained on; the others, all good, are held
    out to set the threshold. `resize` is the length of the shorter side, `imagesize` that of the square cut
    from its centre.
    """

    name: str
    path: Path
    categories: tuple[str, ...]
    resize: int = 256
    imagesize: int = 224
    batch_size: int = 8
    num_workers: int = 8
    train_val_split: float = 1.0
    augment: bool = False

    def __post_init__(self) -> None:
        if not self.categories:
            raise ValueError("at least one category is needed: -d NAME")
        repeated = sorted({name for name in self.categories if self.categories.count(name) > 1})
        if repeated:
            raise ValueError(f"every category once, got more of {', '.join(repeated)}")
        _check_split_and_geometry(self)


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What a stored model remembers of its training images, and an evaluation has to agree with.

    `resize` and `imagesize` are those of `DatasetConfig`. With a `train_val_split` below 1, `seed` says which of the
    training images were held out; that holds for as long as the training folder has the same images.
    """

    resize: int
    imagesize: int
    train_val_split: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_split_and_geometry(self)
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}")


def _check_split_and_geometry(config: DatasetConfig | TrainedOn) -> None:
    if not 0 < config.train_val_split <= 1:
        raise ValueError(f"--train_val_split must be in (0, 1], got {config.train_val_split}")
    if not 0 < config.imagesize <= config.resize:
        raise ValueError(
            f"--imagesize {config.imagesize} must be at most --resize {config.resize}: the image is cut from the"
            " resized one"
        )


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig:
    """The settings of PatchCore: one network, or an ensemble of several.

    `layers` holds the layer names of each backbone, in the order of `backbones`; the first layer of each sets the
    grid of patches. `num_nn` is the number of nearest neighbours whose mean distance is a patch's score.
    """

    backbones: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    pretrain_embed_dimension: int = 1024
    target_embed_dimension: int = 1024
    patchsize: int = 3
    num_nn: int = 1
    faiss_on_gpu: bool = False
    faiss_num_workers: int | None = None
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
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")


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


def to_plain(value: Any) -> Any:
    """Turn a frozen configuration into dicts, lists, strings and numbers, as YAML and JSON hold them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
