"""What the flows are trained on: features computed once, or images whose features are computed whenever asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from patchcore.methods.fastflow.brightness import jittered
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.fastflow.network import Network
from patchcore.system.memory import available_bytes, format_bytes
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
    batches: Iterable[Tensor], num_images: int, network: Network, brightness_jitter: float, timer: StageTimer
) -> Samples:
    """Gather training images as features where these stay the same and fit into half of the free memory.

    Args:
        batches: (B, 3, H, W) uint8 images, `num_images` in all.
        brightness_jitter: share by which images become brighter or darker; 0 leaves features as they are.
    """
    place = _place_of_features(num_images, network)
    if brightness_jitter or place is None:
        if not brightness_jitter:
            size = format_bytes(_feature_bytes(num_images, network))
            log.info("features would take %s: they are computed anew in every epoch", size)
        return ImageSamples(batches, num_images, network, brightness_jitter, timer)
    return FeatureSamples(batches, num_images, network, place, timer)


def expected_bytes(num_images: int, network: Network, config: FastFlowConfig) -> dict[torch.device, int]:
    """What a training holds of so many images, by device: features, or the images; these also to match brightness."""
    images = num_images * 3 * network.imagesize**2
    place = _place_of_features(num_images, network)
    if config.brightness_jitter or place is None:
        return {_HOST: images * (1 + config.match_brightness)}
    host = images * config.match_brightness
    expected = {place: _feature_bytes(num_images, network)}
    return expected | {_HOST: expected.get(_HOST, 0) + host} if host else expected


def _feature_bytes(num_images: int, network: Network) -> int:
    return num_images * network.inputs_per_image * network.nbytes_per_input


def _place_of_features(num_images: int, network: Network) -> torch.device | None:
    """The device that has room for all features, the network's own first; None if none has."""
    for place in dict.fromkeys([network.device, _HOST]):
        if _feature_bytes(num_images, network) <= _SHARE * available_bytes(place):
            return place
    return None


class FeatureSamples:
    """Features that were computed once."""

    def __init__(
        self, batches: Iterable[Tensor], num_images: int, network: Network, place: torch.device, timer: StageTimer
    ) -> None:
        self._device = network.device
        self._maps: list[Tensor] = []
        filled = 0
        for images in batches:
            for pieces in network.chunks(images):
                maps = network.features(pieces, timer)
                if not self._maps:
                    count = num_images * network.inputs_per_image
                    self._maps = [x.new_empty(count, *x.shape[1:], device=place) for x in maps]
                for store, x in zip(self._maps, maps, strict=True):
                    store[filled : filled + len(x)] = x
                filled += len(pieces)

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
        network: Network,
        brightness_jitter: float,
        timer: StageTimer,
    ) -> None:
        self._network = network
        self._jitter = brightness_jitter
        self._timer = timer
        self._images = torch.empty(num_images, 3, network.imagesize, network.imagesize, dtype=torch.uint8)
        filled = 0
        for images in batches:
            self._images[filled : filled + len(images)] = images
            filled += len(images)

    def __len__(self) -> int:
        return len(self._images) * self._network.inputs_per_image

    def maps(self, indices: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """See `Samples`; brightness is what is random."""
        per_image = self._network.inputs_per_image
        numbers = (divmod(index, per_image) for index in indices.tolist())
        images = torch.stack([self._network.piece(self._images[image], piece) for image, piece in numbers])
        jitter = self._jitter and generator is not None
        if jitter:
            images = jittered(images, self._jitter, generator)
        return self._network.features(images, self._timer, cached=not jitter)
