"""Feature maps kept on disk, so that a later run with the same network and images needs no backbone pass.

A map's file is named by a hash of all that decides its digits: the pixels that the network sees, the network with
its weights, the layer, and the conditions under which it is computed (versions, processor, threads, batch size, and
the libraries' switches). So nothing is ever out of date, runs share a folder without a lock, and on a CPU scores are
those of a run without a cache to the last digit. On a GPU two runs may choose other kernels, with a cache or without.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchcore.system.files import atomic_write
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

_SUFFIX = ".map"

_MAGIC = b"PCFMAP1\n"

_HEADER = struct.Struct("<8s5I")  # magic, whether channels are last, three sizes in the order of storage, CRC-32

# What may be deleted to make room: maps, and what a killed run left half written.
_OURS = re.compile(rf"[0-9a-f]+{re.escape(_SUFFIX)}|\.[0-9a-f]{{32}}\.tmp")

# Share of the limit that is written before the folder is looked at again.
_STEP = 0.05


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
        data = np.ascontiguousarray(stored, np.float32).data.cast("B")
        try:
            with atomic_write(self._path(name)) as aside, aside.open("wb") as file:
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

    def take_counts(self) -> tuple[int, int]:
        """Images found and images passed through a backbone since the last call."""
        counts = self._found, self._passed
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
