"""The settings of FastFlow for one category."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchcore.config import weights_dir_setting, weights_setting
from patchcore.methods.fastflow.presets import preset_of
from patchcore.settings import check, setting

WEIGHTS_FILE = "fastflow.safetensors"
DENSITIES = ("latent", "full")
POSITION_SCORES = ("likelihood", "log_likelihood")


@dataclass(frozen=True, kw_only=True)
class FastFlowConfig:
    """The backbone, a flow on each of its layers, their training, and how they score.

    What is None in the call is afterwards that of the backbone's preset. `class_specific` says that some settings
    came from a file by category.
    """

    backbone: str = setting("resnet18", "Backbone.", flags=("--backbone", "-b"))
    layers: tuple[str, ...] = setting(
        (),
        "Layer with a flow of its own; repeat for several.",
        flags=("--layers_to_extract_from", "-le"),
        shown="the backbone's",
    )
    steps: int = setting(None, "Coupling steps of a flow.", at_least=1, shown="the backbone's", by_category=True)
    kernels: str = setting(
        None,
        "Convolutions of the couplings, in turn where there are two.",
        choices=("3x3", "3x3-1x1"),
        shown="the backbone's",
        by_category=True,
    )
    hidden_ratio: float = setting(
        None,
        "Width of the couplings' subnets, as a share of the channels that go in.",
        above=0,
        shown="the backbone's",
        by_category=True,
    )
    clamp: float = setting(2.0, "Bound of the logarithm of a coupling's scale.", above=0, by_category=True)
    feature_norm: str = setting(
        "standardise",
        "Standardise every channel with the training set's statistics, or layer-normalise every image.",
        choices=("standardise", "layer_norm"),
        by_category=True,
    )
    noise: float = setting(
        0.3, "Standard deviation of the noise on normalised features while training.", at_least=0, by_category=True
    )
    match_brightness: bool = setting(
        False, "Bring every image to the median brightness of the training images.", by_category=True
    )
    brightness_jitter: float = setting(
        0.0,
        "Share by which training images become brighter or darker at random.",
        at_least=0,
        below=1,
        by_category=True,
    )
    epochs: int = setting(20, "Times that every training image is seen.", at_least=1, by_category=True)
    train_batch_size: int = setting(8, "Images (or tiles) per step of the training.", at_least=1, by_category=True)
    learning_rate: float = setting(
        1e-3, "Highest learning rate of Adam.", flags=("--learning_rate", "--lr"), above=0, by_category=True
    )
    weight_decay: float = setting(1e-5, "Weight decay of Adam.", at_least=0, by_category=True)
    warmup: float = setting(
        0.1, "Share of the training in which the learning rate rises.", at_least=0, below=1, by_category=True
    )
    gradient_clip: float = setting(1.0, "Largest norm of a flow's gradient.", above=0, by_category=True)
    tile: int | None = setting(None, "Cut images into tiles of this side.", at_least=1, shown="whole images")
    tile_stride: int | None = setting(None, "Pixels from one tile to the next.", at_least=1, shown="the tile's side")
    density: str = setting(
        "latent",
        "What makes a position anomalous: its latent under the standard normal, or its full density, which adds the"
        " log-determinant.",
        choices=DENSITIES,
        on_load=True,
        by_category=True,
    )
    position_score: str = setting(
        "likelihood",
        "One minus the likelihood per dimension, or the negative log-likelihood, which has no bound.",
        choices=POSITION_SCORES,
        on_load=True,
        by_category=True,
    )
    scale_weighting: str = setting(
        "standardised",
        "Maps of several scales are averaged after they were standardised on the training set, or as they are.",
        choices=("standardised", "equal"),
        on_load=True,
        by_category=True,
    )
    image_score: str = setting(
        "top",
        "Of an image's map its maximum, its mean, or the mean of its top share.",
        choices=("top", "max", "mean"),
        on_load=True,
        by_category=True,
    )
    top_share: float = setting(0.01, "That share.", above=0, at_most=1, on_load=True, by_category=True)
    precision: str = setting(
        "auto",
        "bfloat16 for the backbone and the subnets of the flows, or for none; auto for the subnets alone, on CUDA"
        " only.",
        choices=("auto", "float32", "bfloat16"),
    )
    checkpoint_seconds: float = setting(
        30.0, "Seconds between the states that --resume can go on from.", at_least=0, decides=False
    )
    weights: str = weights_setting()
    weights_dir: Path | None = weights_dir_setting()
    class_specific: bool = setting(False, option=False)

    def __post_init__(self) -> None:
        for name, value in preset_of(str(self.backbone)).flow.items():
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, value)
        check(self)
        if self.tile is None and self.tile_stride is not None:
            raise ValueError(f"tile_stride {self.tile_stride} needs a tile size: --tile")
        if self.tile is not None and (self.tile_stride or self.tile) > self.tile:
            raise ValueError(
                f"tile_stride must be in [1, {self.tile}], the tile size, or pixels between tiles are never seen;"
                f" got {self.tile_stride}"
            )
