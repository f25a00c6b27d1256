"""What the detectors of a run share: devices, the cache of feature maps, and backbones that were loaded before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from patchcore.backbones.build import checksum, load_backbone
from patchcore.features.cache import FeatureCache
from patchcore.features.encoder import Encoder
from patchcore.features.extractor import FeatureExtractor, default_layers
from patchcore.system.devices import warn_of_slow_precision
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)


class Workspace:
    """Loads every backbone once, however many detectors ask for it.

    Args:
        devices: those that a run computes on, the first one for whatever needs only one.
        cache: where encoders look for feature maps.
        checksums: whether encoders tell the checksum of their weights, for models that are stored or were.
    """

    def __init__(
        self, devices: Sequence[torch.device], cache: FeatureCache | None = None, *, checksums: bool = True
    ) -> None:
        self.devices = list(devices)
        self.cache = cache
        self._checksums = checksums
        self._encoders: dict[tuple[object, ...], Encoder] = {}

    @classmethod
    def on(cls, device: str | torch.device | None = None) -> Workspace:
        """A workspace on one device; None takes CUDA where it is there.

        Raises:
            PatchCoreError: there is no such device.
        """
        try:
            chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
            reason = str(error).partition("\n")[0]
            raise PatchCoreError(f"device {str(device)!r} cannot be had here, try 'cpu': {reason}") from error
        return cls([chosen])

    @property
    def device(self) -> torch.device:
        """The first device."""
        return self.devices[0]

    def encoder(
        self,
        backbone: str,
        layers: Sequence[str] = (),
        *,
        size: tuple[int, int],
        precision: str = "float32",
        weights: str = "pretrained",
        weights_dir: Path | None = None,
        device: torch.device | None = None,
    ) -> Encoder:
        """The encoder of a backbone on a device, the first one for None.

        Args:
            layers: names of layers; those of `default_layers` where there are none.
            size: (H, W) of the images.
            precision: of the network's products, float32 or bfloat16.
            weights: "pretrained", or "random".
            weights_dir: folder with weight files.

        Raises:
            PatchCoreError: a backbone, layer or image size that cannot be had.
        """
        device = device or self.device
        key = backbone, tuple(layers), size, precision, weights, weights_dir, device
        if key not in self._encoders:
            network = load_backbone(backbone, weights=weights, weights_dir=weights_dir)
            log.debug("%s: weights %s", backbone, network.weights)
            layers = tuple(layers) or default_layers(network)
            warn_of_slow_precision(precision, device)
            values = checksum(network.module) if self._checksums else None
            extractor = FeatureExtractor(network, layers, precision).to(device)
            self._encoders[key] = Encoder(extractor, size, self.cache, weights=network.weights, checksum=values)
        return self._encoders[key]
