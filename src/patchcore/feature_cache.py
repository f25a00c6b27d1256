"""Feature maps kept on disk, so that a later run with the same network and images needs no backbone pass.

A map's file is named by a hash of all that decides its digits: the pixels that the network sees, the network with
its weights, the layer, and the conditions under which it is computed (versions, processor, threads, batch size, and
the libraries' switches). So nothing is ever out of date, runs share a folder without a lock, and on a CPU scores are
those of a run without a cache to the last digit. On a GPU two runs may choose other kernels, with a cache or without.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchcore.features import FeatureExtractor, normalise
from patchcore.runtime import StageTimer, processor, written_aside
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

DEFAULT_GIB = 20.0

_SUFFIX = ".map"
_MAGIC = b"PCFMAP1\n"
_HEADER = struct.Struct("<8s5I")  # magic, whether channels are last, three sizes in the order of storage, CRC-32
# What may be deleted to make room: maps, and what a killed run left half written.
_OURS = re.compile(rf"[0-9a-f]+{re.escape(_SUFFIX)}|\.[0-9a-f]{{32}}\.tmp")

# The code that turns pixels into maps, besides timm's; a version number would not tell one commit from the next.
_SOURCES = ("features.py", "backbones.py", "efficientnet_lite0.py")
# Environment variables by which libraries choose kernels.
_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY", "NVIDIA_TF32_OVERRIDE")

# Share of the limit that is written before the folder is looked at again.
_STEP = 0.05


class Counts(NamedTuple):
    """Images whose maps all came from the cache, and images that had to pass through a backbone."""

    found: int
    passed: int


class FeatureCache:
    """A folder of feature maps of bounded size; what was used longest ago goes first.

    Maps that were used since this object was made are never deleted for new ones: where a run needs more than the
    limit, it keeps what it has, and the rest is computed every time. Runs at the same time may exceed the limit by a
    twentieth each.

    Args:
        folder: made when the first map is written.
        limit: bytes that the maps may take.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._room = 0  # bytes that may be written before the folder is looked at
        self._writes = True
        self._begin = time.time()
        self._found = self._passed = 0

    def read(self, name: str) -> tuple[NDArray[np.float32], bool] | None:
        """The map of that name in the order of its storage, and whether channels are last in it.

        None where there is none, or a damaged one.
        """
        path = self._path(name)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if len(content) < _HEADER.size:
            return None
        magic, channels_last, *shape, checksum = _HEADER.unpack_from(content)
        data = memoryview(content)[_HEADER.size :]
        if magic != _MAGIC or len(data) != 4 * shape[0] * shape[1] * shape[2] or zlib.crc32(data) != checksum:
            log.debug("feature cache: %s is damaged and will be replaced", path)
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(path)
        return np.frombuffer(data, np.float32).reshape(shape), bool(channels_last)

    def write(self, name: str, stored: NDArray[np.float32], channels_last: bool) -> None:
        """Keep a map, unless there is no room; a folder that cannot be written to is warned of once."""
        size = _HEADER.size + stored.nbytes
        if self._writes and size > self._room:
            self._room = self._make_room(size)
            if size > self._room:
                self._writes = False
                log.info(
                    "feature cache: %s is full of maps of this run; the others are not kept (--feature_cache_gib)",
                    self._folder,
                )
        if not self._writes:
            return
        data = memoryview(np.ascontiguousarray(stored, np.float32)).cast("B")
        try:
            with written_aside(self._path(name)) as aside, aside.open("wb") as file:
                file.write(_HEADER.pack(_MAGIC, channels_last, *stored.shape, zlib.crc32(data)))
                file.write(data)
        except PatchCoreError as error:
            self._writes = False
            log.warning("feature cache: %s; the run goes on without keeping maps", error)
        self._room -= size

    def count(self, images: int, *, found: bool) -> None:
        """Note that so many images were found, or had to pass through a backbone."""
        if found:
            self._found += images
        else:
            self._passed += images

    def take_counts(self) -> Counts:
        """What was counted since the last call."""
        counts = Counts(self._found, self._passed)
        self._found = self._passed = 0
        return counts

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name[2:]}{_SUFFIX}"

    def _make_room(self, least: int) -> int:
        """Delete what was used longest ago, where there is need, for `least` bytes or a step of the limit.

        Returns how much may be written before the next look, less than `least` where everything is in use. Files may
        vanish meanwhile: other runs make room as well.
        """
        step = max(least, int(_STEP * self._limit))
        files = sorted(self._files())
        taken = sum(size for _, size, _ in files)
        for used, size, path in files:
            if taken + step <= self._limit or used >= self._begin:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                taken -= size
        return min(step, self._limit - taken)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each of the cache's files was used last, its size, and where it is. Files of others are left out."""
        for folder in self._folder.glob("[0-9a-f][0-9a-f]"):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if _OURS.fullmatch(entry.name):
                        with suppress(OSError):  # vanished
                            status = entry.stat(follow_symlinks=False)
                            yield status.st_mtime, status.st_size, Path(entry.path)


class ImageFeatures:
    """Images -> feature maps, by a frozen backbone, or from a cache where they are known."""

    def __init__(self, extractor: FeatureExtractor, cache: FeatureCache | None = None) -> None:
        self._extractor = extractor
        self._cache = cache
        self._network: bytes | None = None

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
            maps = [_batch(of_layer) for of_layer in known]
            self._cache.count(len(images), found=None not in maps)
            if None not in maps:
                return [x.to(self._device, non_blocking=True) for x in maps]
        maps = self._extract(images, timer)
        with timer("cache"):
            for of_layer, known_of_layer, x in zip(names, known, maps, strict=True):
                channels_last = not x.is_contiguous()
                stored = (x.permute(0, 2, 3, 1) if channels_last else x).cpu().numpy()
                for name, already, one in zip(of_layer, known_of_layer, stored, strict=True):
                    if already is None:
                        self._cache.write(name, one, channels_last)
        return maps

    @property
    def _device(self) -> torch.device:
        return next(self._extractor.parameters()).device

    @torch.no_grad()
    def _extract(self, images: Tensor, timer: StageTimer) -> list[Tensor]:
        with timer("backbone"):
            maps = self._extractor(normalise(images.to(self._device, non_blocking=True)))
            return [_in_one_of_two_orders(x) for x in maps.values()]

    def _names(self, images: Tensor) -> list[list[str]]:
        """The names of the maps: for each layer, for each image."""
        if self._network is None:
            self._network = _identity(self._extractor)
        batch = images.cpu().contiguous().numpy()
        conditions = f"{batch.shape} {torch.get_num_threads()}".encode()
        pixels = [hashlib.blake2b(image, digest_size=32).digest() for image in batch]

        def name(layer: str, image: bytes) -> str:
            parts = (self._network, conditions, layer.encode(), image)
            return hashlib.blake2b(b"|".join(parts), digest_size=20).hexdigest()

        return [[name(layer, image) for image in pixels] for layer in self._extractor.layers]


def _identity(extractor: FeatureExtractor) -> bytes:
    """A hash of the network, its structure and its tensors, and of what else its digits may depend on."""
    device = next(extractor.parameters()).device
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)} cudnn {torch.backends.cudnn.version()}"
    else:
        hardware = f"{processor()} {torch.backends.cpu.get_cpu_capability()}"
    software = [f"{name} {version(name)}" for name in ("torch", "torchvision", "timm")]
    conditions = [extractor.name, extractor.precision, *software, hardware, *_switches(), repr(extractor.module)]
    # SHA-256, since processors compute it in hardware: 0.25 s for the 263 MiB of WideResNet50.
    digest = hashlib.sha256("\n".join(conditions).encode())
    for source in _SOURCES:
        digest.update(Path(__file__).with_name(source).read_bytes())
    for name, tensor in extractor.module.state_dict().items():
        digest.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()


def _switches() -> list[str]:
    """What else decides which kernels compute a map, and in which precision."""
    backends = torch.backends
    flags = {
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (backends.cudnn.allow_tf32, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "onednn": backends.mkldnn.enabled,
        **{name: os.environ.get(name) for name in _VARIABLES},
    }
    return [f"{name} {value}" for name, value in flags.items()]


def _in_one_of_two_orders(x: Tensor) -> Tensor:
    """A (B, C, h, w) map, contiguous with channels first or last; what reads it may round differently by its order."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.stride(1) == 1 else torch.contiguous_format)


def _batch(maps: Sequence[tuple[NDArray[np.float32], bool] | None]) -> Tensor | None:
    """The maps of the images of a batch as one (B, C, h, w) tensor; None unless all are there and alike."""
    if any(one is None for one in maps) or len({(one[0].shape, one[1]) for one in maps}) != 1:
        return None
    stacked = torch.from_numpy(np.stack([one for one, _ in maps]))
    return stacked.permute(0, 3, 1, 2) if maps[0][1] else stacked
