"""The affine coupling step that the flows are made of, in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CouplingStep(nn.Module):
    """One invertible step on a map: scale and shift every channel, permute the channels, couple their halves.

    The first part of the permuted channels stays as it is and tells, through a small convolutional subnet, how each
    value of the second part is scaled and shifted (Dinh et al. 2017, equation 7; Kingma and Dhariwal 2018). A new step
    changes nothing but the order of the channels.

    Args:
        channels: C, at least 2.
        kernel_size: 1 or 3, of both convolutions of the subnet.
        hidden_ratio: channels between the two convolutions, as a share of those that go in.
        clamp: the logarithm of a coupled scale lies in (-clamp, clamp), softly.
        generator: draws the permutation and the first convolution's weights.
    """

    permutation: Tensor

    def __init__(
        self, channels: int, *, kernel_size: int, hidden_ratio: float, clamp: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"a coupling needs two channels or more, got {channels}")
        self.clamp = clamp
        self.sizes = [channels - channels // 2, channels // 2]  # that stay, that change
        kept, changed = self.sizes
        hidden = max(1, round(kept * hidden_ratio))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.register_buffer("permutation", torch.randperm(channels, generator=generator))
        self.enter = nn.Conv2d(kept, hidden, kernel_size, padding="same")
        self.leave = nn.Conv2d(hidden, 2 * changed, kernel_size, padding="same")
        bound = 1 / math.sqrt(kept * kernel_size**2)  # as torch draws them, but from a generator
        for parameter in self.enter.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) float32 -> the same shape, and what each position adds to log |det J|, (B, H, W)."""
        x = (x * self.log_scale.exp() + self.shift)[:, self.permutation]
        kept, changed = x.split(self.sizes, dim=1)
        log_scale, shift = self._subnet(kept)
        y = torch.cat([kept, changed * log_scale.exp() + shift], dim=1)
        return y, log_scale.sum(dim=1) + self.log_scale.sum()

    def inverse(self, y: Tensor) -> Tensor:
        """The x that `forward` maps to `y`."""
        kept, changed = y.split(self.sizes, dim=1)
        log_scale, shift = self._subnet(kept)
        x = torch.cat([kept, (changed - shift) * (-log_scale).exp()], dim=1)
        return (x[:, self.permutation.argsort()] - self.shift) * (-self.log_scale).exp()

    def _subnet(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale and shift of the changed channels, in the precision of `kept` also under autocast."""
        log_scale, shift = self.leave(self.enter(kept).relu()).to(kept.dtype).chunk(2, dim=1)
        return self.clamp * torch.tanh(log_scale / self.clamp), shift
