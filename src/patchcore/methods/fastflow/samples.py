"""What the flows are trained on: features computed once, or images whose features are computed whenever asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from patchcore.methods.fastflow.brightness import jitter_brightness
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.fastflow.tiled_encoder import TiledEncoder
from patchcore.system.devices import available_bytes
from patchcore.system.memory import format_bytes
from patchcore.system.timing import StageTimer

log = logging.getLogger(__name__)

_HOST = torch.device("cpu")
_SHARE = 0.5  # of the free memory may be taken by features


class Samples(Protocol):
    """The inputs of the backbone in training, tiles or whole images, as feature maps."""

    def __len__(self) -> int:
        """How many there are."""

    def maps(self, indices: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """(B, C, h, w) float32 per scale of the samples `indices`; augmented at random if there is a generator."""


def collect(
    batches: Iterable[Tensor], num_images: int, encoder: TiledEncoder, brightness_jitter: float, timer: StageTimer
) -> Samples:
    """Gather training images as features where these stay the same and fit into half of the free memory.

    Args:
        batches: (B, 3, H, W) uint8 images, `num_images` in all.
        brightness_jitter: share by which images become brighter or darker; 0 leaves features as they are.
    """
    place = _place_of_features(num_images, encoder)
    if brightness_jitter or place is None:
        if not brightness_jitter:
            size = format_bytes(encoder.nbytes(num_images))
            log.info("features would take %s: they are computed anew in every epoch", size)
        return ImageSamples(batches, num_images, encoder, brightness_jitter, timer)
    return FeatureSamples(batches, num_images, encoder, place, timer)


def expected_bytes(num_images: int, encoder: TiledEncoder, config: FastFlowConfig) -> dict[torch.device, int]:
    """What a training holds of so many images, by device: features, or the images; these also to match brightness."""
    images = num_images * 3 * encoder.imagesize**2
    place = _place_of_features(num_images, encoder)
    if config.brightness_jitter or place is None:
        return {_HOST: images * (1 + config.match_brightness)}
    host = images * config.match_brightness
    expected = {place: encoder.nbytes(num_images)}
    return expected | {_HOST: expected.get(_HOST, 0) + host} if host else expected


def _place_of_features(num_images: int, encoder: TiledEncoder) -> torch.device | None:
    """The device that has room for all features, the encoder's own first; None if none has."""
    for place in dict.fromkeys([encoder.encoder.device, _HOST]):
        if encoder.nbytes(num_images) <= _SHARE * available_bytes(place):
            return place
    return None


class FeatureSamples:
    """Features that were computed once."""

    def __init__(
        self, batches: Iterable[Tensor], num_images: int, encoder: TiledEncoder, place: torch.device, timer: StageTimer
    ) -> None:
        self._device = encoder.encoder.device
        self._maps: list[Tensor] = []
        filled = 0
        for images in batches:
            for inputs in encoder.cut(images):
                maps = encoder.maps(inputs, timer)
                if not self._maps:
                    count = num_images * encoder.per_image
                    self._maps = [x.new_empty(count, *x.shape[1:], device=place) for x in maps]
                for store, x in zip(self._maps, maps, strict=True):
                    store[filled : filled + len(x)] = x
                filled += len(inputs)

    def __len__(self) -> int:
        return len(self._maps[0])

    def maps(self, indices: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """See `Samples`; nothing here is random."""
        return [x[indices.to(x.device)].to(self._device, non_blocking=True) for x in self._maps]


class ImageSamples:
    """Images in memory, whose features are computed when they are asked for."""

    def __init__(
        self,
        batches: Iterable[Tensor],
        num_images: int,
        encoder: TiledEncoder,
        brightness_jitter: float,
        timer: StageTimer,
    ) -> None:
        self._encoder = encoder
        self._jitter = brightness_jitter
        self._timer = timer
        self._images = torch.empty(num_images, 3, encoder.imagesize, encoder.imagesize, dtype=torch.uint8)
        filled = 0
        for images in batches:
            self._images[filled : filled + len(images)] = images
            filled += len(images)

    def __len__(self) -> int:
        return len(self._images) * self._encoder.per_image

    def maps(self, indices: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """See `Samples`; brightness is what is random."""
        per_image = self._encoder.per_image
        numbers = (divmod(index, per_image) for index in indices.tolist())
        images = torch.stack([self._encoder.input_of(self._images[image], piece) for image, piece in numbers])
        if self._jitter == 0 or generator is None:
            return self._encoder.maps(images, self._timer)
        images = jitter_brightness(images, self._jitter, generator)
        return self._encoder.maps(images, self._timer, cached=False)
