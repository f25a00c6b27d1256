"""Images -> feature maps by a frozen backbone, or from a cache where they are known."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchcore.features.cache import FeatureCache
from patchcore.features.extractor import FeatureExtractor, normalise
from patchcore.system.environment import processor
from patchcore.system.timing import StageTimer
from patchcore.types import PatchCoreError

# The code that turns pixels into maps, besides timm's; a version number would not tell one commit from the next.
_SOURCES = (
    "features/extractor.py",
    "features/folding.py",
    "features/encoder.py",
    "backbones/build.py",
    "backbones/weights.py",
    "backbones/efficientnet_lite0.py",
)

# Environment variables by which libraries choose kernels.
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY", "NVIDIA_TF32_OVERRIDE")


class PixelsToMaps(nn.Module):
    """A backbone with what stands before it: (B, 3, H, W) uint8 RGB -> per layer (B, C, h, w) float32."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> list[Tensor]:
        return [_order(x) for x in self.extractor(normalise(images)).values()]


class Encoder:
    """Images of one size -> feature maps, by a frozen backbone, or from a cache where they are known.

    Attributes:
        layers: the names of the layers.
        shapes: (C, h, w) of every layer's map.
        device: where the backbone is.
        nbytes_per_image: what the maps of one image take.
        backbone: the backbone's name.
        weights: the name of the weights that were loaded.
        checksum: of their values; None where it was not asked for.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        size: tuple[int, int],
        cache: FeatureCache | None = None,
        *,
        weights: str = "",
        checksum: str | None = None,
    ) -> None:
        """Look at the maps of one image of `size` (H, W).

        Raises:
            PatchCoreError: for an image size that the network does not take.
        """
        self.backbone = extractor.name
        self.layers = extractor.layers
        self.shapes = list(extractor.layer_shapes(size).values())
        self.nbytes_per_image = sum(math.prod(shape) for shape in self.shapes) * torch.float32.itemsize
        self.device = next(extractor.parameters()).device
        self.weights = weights
        self.checksum = checksum
        self._extractor = extractor
        self._pixels_to_maps = PixelsToMaps(extractor)
        self._cache = cache

    def __call__(self, images: Tensor, timer: StageTimer, *, cached: bool = True) -> list[Tensor]:
        """Feature maps, without gradient.

        A batch of which one image is not known passes through the backbone as a whole, as it would without a cache:
        some devices round differently in batches of another size.

        Args:
            images: (B, 3, H, W) uint8 on any device.
            timer: told the time of the stages `backbone` and, with a cache, `cache`.
            cached: False for images that will not come again.

        Returns:
            (B, C, h, w) float32 per layer on the backbone's device, with channels first or last in memory.
        """
        if self._cache is None or not cached:
            return self._extract(images, timer)
        with timer("cache"):
            names = self._names(images)
            known = [[self._cache.read(name) for name in of_layer] for of_layer in names]
            batches = [x for x in map(_batch, known) if x is not None]
            self._cache.count(len(images), found=len(batches) == len(known))
            if len(batches) == len(known):
                return [x.to(self.device, non_blocking=True) for x in batches]
        maps = self._extract(images, timer)
        with timer("cache"):
            for of_layer, known_of_layer, x in zip(names, known, maps, strict=True):
                channels_last = not x.is_contiguous()
                stored = (x.permute(0, 2, 3, 1) if channels_last else x).cpu().numpy()
                for name, already, one in zip(of_layer, known_of_layer, stored, strict=True):
                    if already is None:
                        self._cache.write(name, one, channels_last)
        return maps

    def graph(self) -> PixelsToMaps:
        """The way from pixels to maps as a module, for a graph in float32.

        Raises:
            PatchCoreError: the network computes in bfloat16.
        """
        if self._extractor.precision != "float32":
            raise PatchCoreError(
                f"{self.backbone} computes in {self._extractor.precision}, an exported graph in float32, which scores"
                " differently: train with --precision float32 to export"
            )
        return self._pixels_to_maps

    def _extract(self, images: Tensor, timer: StageTimer) -> list[Tensor]:
        with timer("backbone"):
            return self._pixels_to_maps(images.to(self.device, non_blocking=True))

    def _names(self, images: Tensor) -> list[list[str]]:
        """The names of the maps: for each layer, for each image."""
        batch = images.cpu().contiguous().numpy()
        conditions = f"{batch.shape} {torch.get_num_threads()}".encode()
        pixels = [hashlib.blake2b(image, digest_size=32).digest() for image in batch]

        def name(layer: str, image: bytes) -> str:
            parts = (self._network, conditions, layer.encode(), image)
            return hashlib.blake2b(b"|".join(parts), digest_size=20).hexdigest()

        return [[name(layer, image) for image in pixels] for layer in self.layers]

    @cached_property
    def _network(self) -> bytes:
        """A hash of the network, its structure and its tensors, and of what else its digits may depend on."""
        if self.device.type == "cuda":
            hardware = f"{torch.cuda.get_device_name(self.device)} cudnn {torch.backends.cudnn.version()}"
        else:
            hardware = f"{processor()} {torch.backends.cpu.get_cpu_capability()}"
        software = [f"{name} {version(name)}" for name in ("torch", "torchvision", "timm")]
        backends, module = torch.backends, self._extractor.module
        switches = {  # which kernels compute a map, and in which precision
            "precision": torch.get_float32_matmul_precision(),
            "cudnn": (backends.cudnn.allow_tf32, backends.cudnn.benchmark, backends.cudnn.deterministic),
            "onednn": backends.mkldnn.enabled,
            **{name: os.environ.get(name) for name in _VARIABLES},
        }
        kernels = [f"{name} {value}" for name, value in switches.items()]
        conditions = [self.backbone, self._extractor.precision, *software, hardware, *kernels, repr(module)]
        # SHA-256, since processors compute it in hardware: 0.25 s for the 263 MiB of WideResNet50.
        digest = hashlib.sha256("\n".join(conditions).encode())
        for source in _SOURCES:
            digest.update((Path(__file__).parents[1] / source).read_bytes())
        for name, tensor in module.state_dict().items():
            digest.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.digest()


def _order(x: Tensor) -> Tensor:
    """A (B, C, h, w) map, contiguous with channels first or last; what reads it may round differently by its order."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.stride(1) == 1 else torch.contiguous_format)


def _batch(maps: Sequence[tuple[NDArray[np.float32], bool] | None]) -> Tensor | None:
    """The maps of the images of a batch as one (B, C, h, w) tensor; None unless all are there and alike."""
    known = [one for one in maps if one is not None]
    kinds = {(stored.shape, channels_last) for stored, channels_last in known}
    if len(known) < len(maps) or len(kinds) != 1:
        return None
    stacked = torch.from_numpy(np.stack([stored for stored, _ in known]))
    return stacked.permute(0, 3, 1, 2) if known[0][1] else stacked
