"""The brightness of images, which flows mistake for a property of the part."""

from __future__ import annotations

import torch
from torch import Tensor

# However dark or bright an image is, it is not changed by more than this factor.
_LARGEST_GAIN = 2.0


def brightness(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 images -> (B,) float32, the median over all pixels and channels.

    A median, since a defect covers less than half of an image.
    """
    return images.flatten(1).float().median(dim=1).values


def match_brightness(images: Tensor, target: float) -> Tensor:
    """Images scaled to the brightness `target`, (B, 3, H, W) uint8."""
    gain = target / brightness(images).clamp_min(1)
    return scale_brightness(images, gain.clamp(1 / _LARGEST_GAIN, _LARGEST_GAIN))


def jitter_brightness(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images scaled by random factors in [1 - share, 1 + share], (B, 3, H, W) uint8."""
    uniform = torch.rand(len(images), generator=generator)
    return scale_brightness(images, 1 + share * (2 * uniform - 1))


def scale_brightness(images: Tensor, gain: Tensor) -> Tensor:
    """Multiply (B, 3, H, W) uint8 images by (B,) factors, rounded and kept in [0, 255]."""
    return (images * gain[:, None, None, None].to(images.device)).round_().clamp_(0, 255).to(torch.uint8)
