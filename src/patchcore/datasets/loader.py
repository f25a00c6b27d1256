"""Images in batches, decoded ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import torch

from patchcore.datasets.geometry import Geometry
from patchcore.types import Sample

VIEWS = 8  # images per sample with `augment`: the symmetries of the square

Item = TypeVar("Item")
Read = TypeVar("Read")


class Images(Protocol):
    """What a loader reads: a number of images, each (3, H, W) uint8, all of one size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> torch.Tensor: ...


class ImageDataset:
    """The pixels of samples in their order, each (3, imagesize, imagesize) uint8.

    With `augment` every sample appears in the 8 views of the square's symmetry group, one after the other:
    index i is sample i // 8 in view i % 8; view 0 is the image itself, 1 to 3 are turned, 4 to 7 turned and mirrored.
    """

    def __init__(self, samples: Sequence[Sample], geometry: Geometry, augment: bool = False) -> None:
        self.samples = tuple(samples)
        self.geometry = geometry
        self.augment = augment
        # The 8 views of a sample are asked for in a row, and decoding costs far more than turning.
        self._latest: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.samples) * (VIEWS if self.augment else 1)

    def __getitem__(self, index: int) -> torch.Tensor:
        if not self.augment:
            return self._read(index)
        latest = self._latest  # one look, as other threads replace it
        if latest is None or latest[0] != index // VIEWS:
            latest = self._latest = index // VIEWS, self._read(index // VIEWS)
        return turn(latest[1], index % VIEWS)

    def _read(self, index: int) -> torch.Tensor:
        return self.geometry.read(self.samples[index].path)


@dataclass(frozen=True, kw_only=True)
class PrefetchLoader:
    """Batches (B, 3, H, W) uint8 of a data set in its order, decoded ahead by threads; the last may be smaller.

    Pillow and numpy release the interpreter while they work, so that threads decode as fast as worker
    processes and give the first batch in half the time. The error of a bad image is raised after the whole batches
    before it. Leaving a loop early ends the threads.

    Attributes:
        dataset: the images.
        batch_size: images per batch.
        num_workers: decoding threads; 0 decodes in the calling thread.
        pin_memory: batches lie in page-locked memory, for asynchronous copies to CUDA; ignored without CUDA.
    """

    dataset: Images
    batch_size: int
    num_workers: int
    pin_memory: bool = False

    def __post_init__(self) -> None:
        if type(self.batch_size) is not int or not 0 < self.batch_size < 2**31:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {self.num_workers}")

    def __iter__(self) -> Iterator[torch.Tensor]:
        # One batch ahead, so that it is whole when the model asks for it.
        images = read_ahead(self.dataset.__getitem__, range(len(self.dataset)), self.num_workers, self.batch_size)
        with closing(images):
            while batch := list(islice(images, self.batch_size)):
                yield stack(batch, pin_memory=self.pin_memory)


def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], num_workers: int, ahead: int
) -> Generator[Read, None, None]:
    """What `read` returns for every item, in their order, computed by threads.

    Args:
        num_workers: threads; 0 reads in the calling thread.
        ahead: items that are read before they are asked for, beside two for every thread.
    """
    if num_workers == 0:
        yield from map(read, items)
        return
    left = iter(items)
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    try:
        started = deque(pool.submit(read, item) for item in islice(left, ahead + 2 * num_workers))
        while started:
            done = started.popleft().result()
            started.extend(pool.submit(read, item) for item in islice(left, 1))
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def stack(images: Sequence[torch.Tensor], *, pin_memory: bool = False) -> torch.Tensor:
    """Images (3, H, W) uint8, each a view of (H, W, 3) -> (B, 3, H, W), channels last."""
    rows = [image.permute(1, 2, 0) for image in images]  # (H, W, 3), as they lie in memory
    out = None
    if pin_memory and torch.cuda.is_available():
        out = torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype, pin_memory=True)
    return torch.stack(rows, out=out).permute(0, 3, 1, 2)


def turn(image: torch.Tensor, view: int) -> torch.Tensor:
    """One of the 8 views of a square image (3, S, S): 0 is itself, 1 to 3 are turned, 4 to 7 turned and mirrored."""
    turned = torch.rot90(image, view % 4, (1, 2))
    return turned.flip(2) if view >= 4 else turned
