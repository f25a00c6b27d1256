"""One normalizing flow per feature scale: how likely is what the backbone says at every position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchcore.methods.fastflow.config import DENSITIES, POSITION_SCORES, FastFlowConfig
from patchcore.methods.fastflow.coupling import CouplingStep

KERNEL_SIZES = {"3x3": (3,), "3x3-1x1": (3, 1)}


class Flow(nn.Module):
    """Coupling steps one after the other, between maps of (B, C, H, W) and a standard normal of the same shape."""

    def __init__(
        self,
        channels: int,
        *,
        kernel_sizes: Sequence[int],
        hidden_ratio: float,
        clamp: float,
        generator: torch.Generator,
    ) -> None:
        """A flow of `len(kernel_sizes)` steps; the other settings are those of `CouplingStep`."""
        super().__init__()
        self.steps = nn.ModuleList(
            CouplingStep(channels, kernel_size=size, hidden_ratio=hidden_ratio, clamp=clamp, generator=generator)
            for size in kernel_sizes
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) float32 -> latent z of the same shape, and log |det dz/dx| by position, (B, H, W).

        The determinant of the whole map is the product over its positions.
        """
        log_det = x.new_zeros(())
        for step in self.steps:
            x, share = step(x)
            log_det = log_det + share
        return x, log_det

    def inverse(self, z: Tensor) -> Tensor:
        """The x that `forward` maps to `z`."""
        for step in reversed(self.steps):
            z = cast(CouplingStep, step).inverse(z)
        return z


class FastFlowModel(nn.Module):
    """The flows of all scales, with what normalises their input and compares their output.

    Args:
        channels: C of every scale.
        config: the flows' settings.
        generator: a CPU generator, the source of permutations and first weights.
    """

    brightness: Tensor
    score_mean: Tensor
    score_std: Tensor

    def __init__(self, channels: Sequence[int], config: FastFlowConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.feature_norm = config.feature_norm
        self.precision = config.precision
        self.flows = nn.ModuleList(
            Flow(
                count,
                kernel_sizes=list(islice(cycle(KERNEL_SIZES[config.kernels]), config.steps)),
                hidden_ratio=config.hidden_ratio,
                clamp=config.clamp,
                generator=generator,
            )
            for count in channels
        )
        for scale, count in enumerate(channels):
            self.register_buffer(f"feature_mean_{scale}", torch.zeros(count, 1, 1))
            self.register_buffer(f"feature_std_{scale}", torch.ones(count, 1, 1))
        self.register_buffer("brightness", torch.zeros(()))  # median of the training images, where it is matched
        # Of the position scores on the training set: (scale, density, kind of score).
        shape = len(channels), len(DENSITIES), len(POSITION_SCORES)
        self.register_buffer("score_mean", torch.zeros(shape))
        self.register_buffer("score_std", torch.ones(shape))

    def forward(self, maps: Iterable[Tensor], noise: float = 0.0, generator: torch.Generator | None = None) -> list:
        """How likely every position is.

        Args:
            maps: (B, C, h, w) float32 feature maps, one per scale.
            noise: standard deviation of normal noise that is added to the normalised maps.
            generator: of the noise, on the maps' device.

        Returns:
            Per scale (2, B, h, w) log-likelihoods in nats per dimension, in the order of `DENSITIES`.
        """
        result = []
        for scale, (flow, x) in enumerate(zip(self.flows, maps, strict=True)):
            x = self._normalised(scale, x)
            if noise:
                x = x + noise * torch.randn(x.shape, generator=generator, device=x.device)
            with self._autocast(x.device):
                z, log_det = flow(x)
            latent = -0.5 * (z.square().mean(dim=1) + math.log(2 * math.pi))  # (B, h, w)
            result.append(torch.stack([latent, latent + log_det / x.shape[1]]))
        return result

    @torch.no_grad()
    def fit_normalisation(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Learn every channel's mean and standard deviation from feature maps, (B, C, h, w) per scale."""
        moments = _Moments()
        for maps in batches:
            moments.add([x.transpose(0, 1).flatten(1) for x in maps])  # (C, B * h * w)
        for scale, (mean, std) in enumerate(moments.result()):
            # A channel that hardly varies must not be blown up.
            std = std.clamp_min(1e-3 * float(std.mean()) or 1.0)
            getattr(self, f"feature_mean_{scale}").copy_(mean[:, None, None])
            getattr(self, f"feature_std_{scale}").copy_(std[:, None, None])

    @torch.no_grad()
    def fit_score_statistics(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Learn mean and standard deviation of all kinds of position scores from feature maps of the training set."""
        moments = _Moments()
        for maps in batches:
            # (density, B, h, w) -> (density * kind, B * h * w)
            kinds = [torch.stack([_position_score(x, k) for k in POSITION_SCORES], 1) for x in self(maps)]
            moments.add([x.flatten(0, 1).flatten(1) for x in kinds])
        mean, std = (torch.stack(values) for values in zip(*moments.result(), strict=True))
        self.score_mean.copy_(mean.view_as(self.score_mean))
        self.score_std.copy_(std.clamp_min(torch.finfo(std.dtype).tiny).view_as(self.score_std))

    def position_scores(self, log_likelihoods: Sequence[Tensor], config: FastFlowConfig) -> list[Tensor]:
        """The score of every position, the higher the more anomalous.

        Args:
            log_likelihoods: (2, B, h, w) per scale, from `forward`.
            config: says which of them, and how.

        Returns:
            (B, h, w) per scale.
        """
        density, kind = DENSITIES.index(config.density), POSITION_SCORES.index(config.position_score)
        scores = [_position_score(values[density], config.position_score) for values in log_likelihoods]
        if config.scale_weighting == "equal":
            return scores
        means, stds = self.score_mean[:, density, kind], self.score_std[:, density, kind]
        return [(score - mean) / std for score, mean, std in zip(scores, means, stds, strict=True)]

    def _normalised(self, scale: int, x: Tensor) -> Tensor:
        if self.feature_norm == "layer_norm":
            return F.layer_norm(x, [int(length) for length in x.shape[1:]])  # numbers, also where it is exported
        return (x - getattr(self, f"feature_mean_{scale}")) / getattr(self, f"feature_std_{scale}")

    def _autocast(self, device: torch.device) -> torch.autocast:
        automatic = device.type == "cuda" and torch.cuda.is_bf16_supported()
        enabled = self.precision == "bfloat16" or (self.precision == "auto" and automatic)
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def image_scores(maps: Tensor, config: FastFlowConfig) -> Tensor:
    """(B, H, W) maps -> (B,) image scores, as `config` says."""
    pixels = maps.flatten(1)
    if config.image_score == "max":
        return pixels.amax(dim=1)
    if config.image_score == "mean":
        return pixels.mean(dim=1)
    count = max(1, round(config.top_share * int(pixels.shape[1])))
    return pixels.topk(count, dim=1, sorted=False).values.mean(dim=1)


def _position_score(log_likelihood: Tensor, kind: str) -> Tensor:
    """Nats per dimension -> a score, the higher the more anomalous."""
    return -torch.expm1(log_likelihood) if kind == "likelihood" else -log_likelihood


class _Moments:
    """Mean and standard deviation of rows that come in pieces, one set of rows per scale."""

    def __init__(self) -> None:
        self._sums: list[tuple[int, Tensor, Tensor]] = []

    def add(self, pieces: Sequence[Tensor]) -> None:
        """Take (rows, n) values per scale."""
        new = [(x.shape[1], x.double().sum(1), x.double().square().sum(1)) for x in pieces]
        if self._sums:
            new = [(n + m, a + b, c + d) for (n, a, c), (m, b, d) in zip(self._sums, new, strict=True)]
        self._sums = new

    def result(self) -> list[tuple[Tensor, Tensor]]:
        """(rows,) float32 mean and standard deviation per scale."""
        means = [(total / count, squares / count) for count, total, squares in self._sums]
        return [(mean.float(), (square - mean**2).clamp_min(0).sqrt().float()) for mean, square in means]
