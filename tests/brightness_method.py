"""The simplest method there is, without a network: an image is as anomalous as its brightness is unusual."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from patchcore.features.encoder import Encoder
from patchcore.methods.batch_scores import BatchScores
from patchcore.methods.detector import Detector
from patchcore.methods.method import Method, Stage
from patchcore.methods.training_images import TrainingImages
from patchcore.settings import check, setting
from patchcore.system.timing import StageTimer
from patchcore.types import PatchCoreError


@dataclass(frozen=True, kw_only=True)
class BrightnessConfig:
    """How much a deviation counts, and from which brightness on learning fails."""

    factor: float = setting(1.0, "Factor of the score.", above=0, on_load=True)
    too_bright: float = setting(256.0, "Training images of more than this mean brightness are refused.", above=0)
    threads: int = setting(1, "Without effect on the numbers.", at_least=1, decides=False)

    def __post_init__(self) -> None:
        check(self)


class Brightness(Detector):
    """Remembers the mean brightness of good images."""

    config: BrightnessConfig

    def prepare(self) -> list[Encoder]:
        self.mean = float("nan")
        return []

    def learn(self, images: TrainingImages, generator: torch.Generator, timer: StageTimer, record: Path | None) -> None:
        with timer("mean"):
            self.mean = float(torch.cat([batch.float().mean(dim=(1, 2, 3)) for batch in images.batches]).mean())
        if self.mean > self.config.too_bright:
            raise PatchCoreError(f"the images are too bright: {self.mean:.0f}")

    def score(self, images: Tensor, timer: StageTimer) -> BatchScores:
        maps = (images.float().mean(dim=1) - self.mean).abs() * self.config.factor  # (B, H, W)
        return BatchScores(scores=maps.flatten(1).mean(dim=1)[None], maps=maps[None])

    def write_arrays(self, folder: Path) -> None:
        (folder / "mean.json").write_text(json.dumps(self.mean))

    def read_arrays(self, folder: Path) -> None:
        self.mean = json.loads((folder / "mean.json").read_text())


METHOD = Brightness.method = Method(
    name="brightness",
    title="Brightness",
    config=BrightnessConfig,
    stages=(Stage(word="brightness", settings=("factor", "too_bright", "threads"), help="Choose the factor."),),
    detector="brightness_method:Brightness",
    image_size=lambda config, resize, imagesize: (resize or 64, imagesize or 64),
    image_size_shown=("64", "64"),
    describe=lambda config: ("no network", f"factor {config.factor:g}"),
)
