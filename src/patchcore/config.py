"""The settings of a run: frozen, checked when made, and written to YAML. No torch here, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = ("pretrained", "random")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run goes, on what it runs, and what it leaves beside `results.csv`.

    `feature_cache` is the folder of feature maps that runs share, `feature_cache_gib` how large it may become, None the
    default.
    """

    results_path: Path
    gpu: tuple[int, ...] = (0,)
    seed: int = 0
    log_group: str = "group"
    log_project: str = "project"
    save_model: bool = False
    save_segmentation_images: bool = False
    save_anomaly_scores: bool = False
    resume: bool = False
    feature_cache: Path | None = None
    feature_cache_gib: float | None = None

    def __post_init__(self) -> None:
        if self.feature_cache_gib is not None and self.feature_cache is None:
            raise ValueError("--feature_cache_gib has no effect without --feature_cache")
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
    from its centre. `reduced_decoding` decodes large JPEG files at a smaller scale.
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
    reduced_decoding: bool = False

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

    The fields are those of `DatasetConfig` and the run. With a `train_val_split` below 1, `seed` says which of the
    training images were held out; that holds for as long as the training folder has the same images.
    """

    resize: int
    imagesize: int
    train_val_split: float = 1.0
    seed: int = 0
    reduced_decoding: bool = False

    @classmethod
    def of(cls, dataset: DatasetConfig, seed: int) -> TrainedOn:
        """What a model that is trained on `dataset` has to remember."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "seed"]
        return cls(seed=seed, **{name: getattr(dataset, name) for name in names})

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


def _check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")


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
