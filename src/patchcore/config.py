"""The settings of a run: frozen, checked when made, and written to YAML. No torch here, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLER_NAMES = ("approx_greedy_coreset", "greedy_coreset", "identity", "random")
WEIGHTS = ("pretrained", "random")
KERNELS = ("3x3", "3x3-1x1")
FEATURE_NORMS = ("standardise", "layer_norm")
DENSITIES = ("latent", "full")
POSITION_SCORES = ("likelihood", "log_likelihood")
SCALE_WEIGHTINGS = ("standardised", "equal")
IMAGE_SCORES = ("top", "max", "mean")
PRECISIONS = ("auto", "float32", "bfloat16")
BACKBONE_PRECISIONS = ("float32", "bfloat16")


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


@dataclass(frozen=True, kw_only=True)
class FastFlowScoring:
    """How FastFlow's densities become maps and image scores; may be chosen anew for a stored model.

    Attributes:
        density: what makes a position anomalous, its `latent` under the standard normal, or the `full` density of its
            features, which adds the log-determinant.
        position_score: `likelihood` l is 1 - exp(l) with l the log-likelihood per dimension, so that no position counts
            without bound; `log_likelihood` is -l itself.
        scale_weighting: `standardised` by mean and standard deviation over the training set before the scales are
            averaged, or `equal` as they are.
        image_score: of an image's map the `max`, the `mean`, or the mean of the `top` share.
        top_share: that share, in (0, 1].
    """

    density: str = "latent"
    position_score: str = "likelihood"
    scale_weighting: str = "standardised"
    image_score: str = "top"
    top_share: float = 0.01

    def __post_init__(self) -> None:
        _check_choice(self, "density", DENSITIES)
        _check_choice(self, "position_score", POSITION_SCORES)
        _check_choice(self, "scale_weighting", SCALE_WEIGHTINGS)
        _check_choice(self, "image_score", IMAGE_SCORES)
        if not 0 < self.top_share <= 1:
            raise ValueError(f"top_share must be in (0, 1], got {self.top_share}")


@dataclass(frozen=True, kw_only=True)
class FastFlowConfig:
    """The settings of FastFlow for one category.

    Attributes:
        backbone: its name; `layers` are modelled by a flow each, the backbone's own scales where empty.
        steps: coupling steps of each flow, with convolutions of `kernels`, in turn where there are two.
        hidden_ratio: width of the couplings' subnets, as a share of the channels that go in.
        clamp: bound of the logarithm of a coupling's scale.
        feature_norm: `standardise` every channel with its mean and standard deviation over the training set, or
            `layer_norm` over every image.
        noise: standard deviation of the noise on normalised features while training.
        match_brightness: bring every image to the median brightness of the training images.
        brightness_jitter: images are brightened or darkened by up to this share while training; 0 trains on fixed
            images, whose features are computed once.
        epochs, train_batch_size, learning_rate, weight_decay, gradient_clip: of Adam; the rate rises for the share
            `warmup` of all steps and falls as a cosine. `gradient_clip` bounds the gradient's norm per flow.
        tile: side of the square tiles that images are cut into, None for whole images; `tile_stride` apart.
        precision: bfloat16 is that of the backbone and the subnets; auto of the subnets alone, and on CUDA only.
        checkpoint_seconds: the training can be resumed from a state at most about so old.
        class_specific: whether hyper-parameters came from a file by category.
    """

    backbone: str
    layers: tuple[str, ...] = ()
    steps: int = 8
    kernels: str = "3x3"
    hidden_ratio: float = 1.0
    clamp: float = 2.0
    feature_norm: str = "standardise"
    noise: float = 0.3
    match_brightness: bool = False
    brightness_jitter: float = 0.0
    epochs: int = 20
    train_batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    warmup: float = 0.1
    gradient_clip: float = 1.0
    tile: int | None = None
    tile_stride: int | None = None
    precision: str = "auto"
    checkpoint_seconds: float = 30.0
    weights: str = "pretrained"
    weights_dir: Path | None = None
    class_specific: bool = False
    scoring: FastFlowScoring = dataclasses.field(default_factory=FastFlowScoring)

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "train_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("hidden_ratio", "clamp", "learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("noise", "weight_decay", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("brightness_jitter", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        _check_choice(self, "kernels", KERNELS)
        _check_choice(self, "feature_norm", FEATURE_NORMS)
        _check_choice(self, "precision", PRECISIONS)
        _check_choice(self, "weights", WEIGHTS)
        if self.tile is None and self.tile_stride is not None:
            raise ValueError(f"tile_stride {self.tile_stride} needs a tile size: --tile")
        if self.tile is not None and not 0 < (self.tile_stride or self.tile) <= self.tile:
            raise ValueError(
                f"tile_stride must be in [1, {self.tile}], the tile size, or pixels between tiles are never seen;"
                f" got {self.tile_stride}"
            )


@dataclass(frozen=True, kw_only=True)
class FastFlowLoaderConfig:
    """Which stored FastFlow models are evaluated, and how they score.

    `paths` holds one model folder for all categories, or one per category in their order. `scoring` holds the fields
    of `FastFlowScoring` that replace those stored.
    """

    paths: tuple[Path, ...]
    scoring: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights_dir: Path | None = None


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
