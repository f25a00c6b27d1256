"""The settings of FastFlow."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchcore.config import WEIGHTS, _check_choice

KERNELS = ("3x3", "3x3-1x1")


FEATURE_NORMS = ("standardise", "layer_norm")


DENSITIES = ("latent", "full")


POSITION_SCORES = ("likelihood", "log_likelihood")


SCALE_WEIGHTINGS = ("standardised", "equal")


IMAGE_SCORES = ("top", "max", "mean")


PRECISIONS = ("auto", "float32", "bfloat16")


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
