"""The frozen backbone under the flows: images or their tiles -> feature maps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from patchcore.backbones.build import load_backbone
from patchcore.features.cache import FeatureCache
from patchcore.features.encoder import ImageFeatures
from patchcore.features.extractor import FeatureExtractor, feature_scales
from patchcore.methods.fastflow.config import FastFlowConfig
from patchcore.methods.fastflow.tiles import Tiling
from patchcore.system.devices import warn_of_slow_precision
from patchcore.system.timing import StageTimer
from patchcore.types import PatchCoreError

CHUNK = 32  # tiles that pass through the backbone at a time


class Network:
    """A backbone, its layers, and how images are cut for it. Holds nothing that is learnt.

    Attributes:
        channels: C of every layer.
        nbytes_per_input: what the feature maps of one backbone input take.
        tiling: None for whole images.
    """

    def __init__(
        self, config: FastFlowConfig, imagesize: int, device: torch.device, cache: FeatureCache | None = None
    ) -> None:
        """Load the backbone of a configuration for images of `imagesize`.

        Raises:
            PatchCoreError: a backbone, layer, tile or image size that cannot be had.
        """
        backbone = load_backbone(config.backbone, weights=config.weights, weights_dir=config.weights_dir)
        layers = config.layers or tuple(scale.layer for scale in feature_scales(backbone))
        self.device = device
        self.imagesize = imagesize
        self.tiling = None
        if config.tile is not None:
            try:
                self.tiling = Tiling((imagesize, imagesize), config.tile, config.tile_stride or config.tile)
            except ValueError as error:
                raise PatchCoreError(f"--tile {config.tile}: {error}") from error
        warn_of_slow_precision(config.precision, device)
        precision = "bfloat16" if config.precision == "bfloat16" else "float32"
        self.extractor = FeatureExtractor(backbone, layers, precision).to(device)
        shapes = self.extractor.layer_shapes((self.inputsize, self.inputsize))
        self.channels = [channels for channels, _, _ in shapes.values()]
        self.nbytes_per_input = sum(math.prod(shape) for shape in shapes.values()) * torch.float32.itemsize
        self._features = ImageFeatures(self.extractor, cache)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers."""
        return self.extractor.layers

    @property
    def inputsize(self) -> int:
        """Side of what the backbone sees at once: a tile or a whole image."""
        return self.tiling.tile if self.tiling else self.imagesize

    @property
    def inputs_per_image(self) -> int:
        """Tiles of an image, or 1."""
        return len(self.tiling) if self.tiling else 1

    def pieces(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 images -> (B * inputs_per_image, 3, S, S) uint8 backbone inputs."""
        return self.tiling.cut(images) if self.tiling else images

    def piece(self, image: Tensor, index: int) -> Tensor:
        """(3, H, W) uint8 image -> backbone input number `index` of it, (3, S, S)."""
        return self.tiling.tile_of(image, index) if self.tiling else image

    def chunks(self, images: Tensor) -> Iterator[Tensor]:
        """The inputs of a batch of images, in numbers that the backbone can take at once."""
        return iter(self.pieces(images).split(max(CHUNK, len(images))))

    def features(self, pieces: Tensor, timer: StageTimer, *, cached: bool = True) -> list[Tensor]:
        """Feature maps of backbone inputs.

        Args:
            pieces: (B, 3, S, S) uint8 on any device.
            timer: told the time of the stages `backbone` and, with a cache, `cache`.
            cached: False for inputs that will not come again.

        Returns:
            (B, C, h, w) float32 per layer, on the device.
        """
        return self._features(pieces, timer, cached=cached)

    def whole_maps(self, maps: Tensor) -> Tensor:
        """(B * inputs_per_image, S, S) maps of the backbone inputs -> (B, H, W) maps of the images."""
        return self.tiling.blend(maps) if self.tiling else maps
