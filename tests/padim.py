"""PaDiM (Defard et al. 2021), a third method from outside of the package: a Gaussian for every position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchcore.config import weights_dir_setting, weights_setting
from patchcore.features.encoder import Encoder
from patchcore.methods.batch_scores import BatchScores
from patchcore.methods.detector import Detector
from patchcore.methods.method import Method, Stage
from patchcore.methods.training_images import TrainingImages
from patchcore.scoring import anomaly_maps, image_scores
from patchcore.settings import check, setting, settings_of
from patchcore.system.timing import StageTimer

ARRAYS = "gaussians.safetensors"


@dataclass(frozen=True, kw_only=True)
class PadimConfig:
    """The backbone, and how many of its channels are kept at random."""

    backbone: str = setting("resnet18", "Backbone.", flags=("--backbone", "-b"))
    layers: tuple[str, ...] = setting(help="Layer; repeat for several.", flags=("--layers", "-le"))
    channels: int = setting(100, "Channels kept, chosen at random.", at_least=1)
    regularisation: float = setting(0.01, "Added to the variances.", above=0)
    weights: str = weights_setting()
    weights_dir: Path | None = weights_dir_setting()

    def __post_init__(self) -> None:
        check(self)


METHOD = Method(
    name="padim",
    title="PaDiM",
    config=PadimConfig,
    stages=(Stage(word="padim", settings=tuple(settings_of(PadimConfig)), help="Choose the backbone."),),
    detector="padim:Padim",
    image_size=lambda config, resize, imagesize: (resize or 256, imagesize or 224),
    image_size_shown=("256", "224"),
    describe=lambda config: (config.backbone, f"{config.channels} channels"),
)


class Padim(Detector):
    """Learns mean and covariance of the features at every position; the score is the Mahalanobis distance."""

    method = METHOD
    config: PadimConfig

    def prepare(self) -> list[Encoder]:
        side = self.geometry.imagesize
        self.encoder = self.workspace.encoder(
            self.config.backbone,
            self.config.layers,
            size=(side, side),
            weights=self.config.weights,
            weights_dir=self.config.weights_dir,
        )
        self.state: dict[str, Tensor] = {}
        return [self.encoder]

    def learn(self, images: TrainingImages, generator: torch.Generator, timer: StageTimer, record: Path | None) -> None:
        everything = sum(channels for channels, _, _ in self.encoder.shapes)
        chosen = torch.randperm(everything, generator=generator)[: self.config.channels].sort().values
        x = torch.cat([self._embed(batch, chosen, timer) for batch in images.batches]).double()  # (N, P, D)
        with timer("gaussians"):
            mean = x.mean(dim=0)
            centred = x - mean
            covariance = torch.einsum("npd,npe->pde", centred, centred) / max(1, len(x) - 1)
            covariance += self.config.regularisation * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
            inverse = torch.linalg.inv(covariance)
        self.state = {"chosen": chosen, "mean": mean.float(), "inverse": inverse.float().contiguous()}

    def score(self, images: Tensor, timer: StageTimer) -> BatchScores:
        centred = self._embed(images, self.state["chosen"], timer) - self.state["mean"]  # (B, P, D)
        with timer("maps"):
            squared = torch.einsum("npd,pde,npe->np", centred, self.state["inverse"], centred)
            grid = squared.clamp_min(0).sqrt().unflatten(1, self.encoder.shapes[0][1:])  # (B, h, w)
            maps = anomaly_maps(grid, tuple(images.shape[-2:]))
        return BatchScores(scores=image_scores(grid)[None], maps=maps[None])

    def costs(self) -> dict[str, float]:
        return {"gaussians_mib": sum(math.prod(x.shape) * x.element_size() for x in self.state.values()) / 2**20}

    def write_arrays(self, folder: Path) -> None:
        save_file({name: value.cpu().contiguous() for name, value in self.state.items()}, folder / ARRAYS)

    def read_arrays(self, folder: Path) -> None:
        self.state = {name: value.to(self.workspace.device) for name, value in load_file(folder / ARRAYS).items()}

    def _embed(self, images: Tensor, chosen: Tensor, timer: StageTimer) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D) the chosen channels at every position of the first layer's grid."""
        first, *others = self.encoder(images, timer)
        resized = [F.interpolate(x, size=first.shape[-2:], mode="bilinear", align_corners=False) for x in others]
        return torch.cat([first, *resized], dim=1)[:, chosen].flatten(2).transpose(1, 2)
