"""Image files -> verdicts: one resident detector, images in batches, and broken ones that stop nobody."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from patchcore.calibration import FALSE_REJECTS
from patchcore.datasets.loader import read_ahead, stack
from patchcore.methods.detector import Detector
from patchcore.methods.judging import Judge
from patchcore.methods.sources import Sources
from patchcore.types import Inspected, PatchCoreError

_READERS = 8  # threads that decode images


@dataclass(frozen=True, kw_only=True)
class ReadImage:
    """An image file on its way to the detector.

    Attributes:
        pixels: (3, H, W) uint8, what the network sees.
        size: (width, height) of the original image.
        state: as in `Inspected`, before it was read.
    """

    path: Path
    pixels: Tensor
    size: tuple[int, int]
    state: tuple[int, int] | None


class Inspector:
    """Judges image files with one detector.

    Args:
        detector: fitted or loaded.
        false_rejects: share of good images that may be rejected.
        threshold: images that score above it are rejected, whatever the calibration says; None leaves it to that.
        batch_size: images at a time, at least 1.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        false_rejects: float = FALSE_REJECTS,
        threshold: float | None = None,
        batch_size: int = 8,
    ) -> None:
        self.detector = detector
        self.batch_size = batch_size
        self._judge = Judge(calibration=detector.calibration, false_rejects=false_rejects, threshold=threshold)

    def inspect(self, images: Iterable[Path | Inspected]) -> Iterator[Inspected]:
        """Judge images in their order; what is broken already is passed on.

        Batches are made of those that can be read: a broken image leaves the others as they would be without it.
        """
        return self.judge_all(self.read_all(images))

    def read_all(self, images: Iterable[Path | Inspected]) -> Iterator[ReadImage | Inspected]:
        """Read images ahead, in their order; one that is broken comes with the reason."""
        return read_ahead(self._read, images, _READERS, self.batch_size)

    def judge_all(self, images: Iterable[ReadImage | Inspected]) -> Iterator[Inspected]:
        """Judge images that were read, in batches and in their order."""
        waiting: list[ReadImage | Inspected] = []
        count = 0
        for image in images:
            waiting.append(image)
            count += isinstance(image, ReadImage)
            if count in (0, self.batch_size):
                yield from self._flush(waiting)
                waiting, count = [], 0
        yield from self._flush(waiting)

    def _flush(self, images: Sequence[ReadImage | Inspected]) -> Iterator[Inspected]:
        judged = iter(self._judge_batch([image for image in images if isinstance(image, ReadImage)]))
        for image in images:
            yield image if isinstance(image, Inspected) else next(judged)

    def _read(self, image: Path | Inspected) -> ReadImage | Inspected:
        if isinstance(image, Inspected):
            return image
        state = state_of(image)
        try:
            source = Sources([image], self.detector.geometry)
            return ReadImage(path=image, pixels=source[0], size=source.sizes[0], state=state)
        # An image of one by a million pixels is too long for Pillow and for the memory when it is resized.
        except (PatchCoreError, OSError, ValueError, MemoryError) as error:
            text = str(error) if isinstance(error, PatchCoreError) else f"cannot read the image {image}: {error}"
            return Inspected(path=image, error=" ".join(text.split()), state=state)

    def _judge_batch(self, images: Sequence[ReadImage]) -> list[Inspected]:
        if not images:
            return []
        begin = time.perf_counter()
        batch = stack([image.pixels for image in images], pin_memory=True)
        output = self.detector.predict_batches([batch])
        results = self._judge.results(output, [image.size for image in images], self.detector.geometry)
        seconds = (time.perf_counter() - begin) / len(images)
        pictures = batch.permute(0, 2, 3, 1).numpy()  # (B, H, W, 3)
        return [
            Inspected(
                path=image.path, result=result, seconds=seconds, picture=picture, size=image.size, state=image.state
            )
            for image, result, picture in zip(images, results, pictures, strict=True)
        ]


def state_of(path: Path) -> tuple[int, int] | None:
    """The size of a file in bytes, and the time of its last change in ns; None if it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a watched folder is looked at several times a second
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
