"""Good images on their way to a detector, and what a model keeps of them: their names, hashes, and small pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchcore.methods.stored_model import Photo
from patchcore.types import PatchCoreError

log = logging.getLogger(__name__)

PICTURES_FILE = "training_images.zip"
CHEAP_SECONDS = 10.0  # a calibration of no more is cheap,
CHEAP_SHARE = 0.1  # and so is one that takes no more of the training
_QUALITY = 90  # of the JPEG files in it


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Good images on their way to a detector.

    Attributes:
        batches: (B, 3, H, W) uint8.
        count: images in all.
        views: how many of them show the same photo, turned and mirrored, one after the other.
        names: of the photos; empty where they have none.
        leave_one_out: whether the detector should say of each photo what it would say had it not learnt it.
        album: of the photos that have passed by, see `Album.watch`.
        if_cheap: whether it may do without that where it takes long, see `CHEAP_SECONDS` and `CHEAP_SHARE`.
    """

    batches: Iterable[Tensor]
    count: int
    views: int = 1
    names: Sequence[str] = ()
    leave_one_out: bool = False
    if_cheap: bool = False
    album: Album = dataclasses.field(default_factory=lambda: Album())


class Album:
    """The photos that a detector has learnt, and what the network saw of them as JPEG pictures.

    Args:
        photos: all of them, in the order in which they were learnt.
        pictures: of the same photos, or none at all.
        side: of every picture in pixels; None where they come from no file.
    """

    def __init__(self, photos: Sequence[Photo] = (), pictures: Sequence[bytes] = (), side: int | None = None) -> None:
        self.photos = list(photos)
        self._pictures = list(pictures)
        self._side = side

    def __len__(self) -> int:
        return len(self._pictures)

    def picture(self, number: int) -> NDArray[np.uint8]:
        """What the network saw of a photo, about: (H, W, 3) RGB.

        Raises:
            PatchCoreError: the picture is damaged.
        """
        try:
            with Image.open(io.BytesIO(self._pictures[number]), formats=["JPEG"]) as picture:
                if self._side is not None and picture.size != (self._side, self._side):  # before it is decoded
                    raise ValueError(f"{picture.size} pixels, expected {self._side} a side")
                return np.asarray(picture.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise PatchCoreError(f"{PICTURES_FILE}: picture {number} is damaged: {error}") from error

    def joined(self, other: Album) -> Album:
        """The photos of both, with pictures if both have them all."""
        whole = len(self) == len(self.photos) and len(other) == len(other.photos)
        pictures = [*self._pictures, *other._pictures] if whole else []
        return Album([*self.photos, *other.photos], pictures, self._side)

    def watch(self, images: TrainingImages) -> Iterator[Tensor]:
        """Pass batches on, and take every photo's first view into the album."""
        number = 0
        for batch in images.batches:
            for pixels in batch.permute(0, 2, 3, 1).contiguous().numpy():  # (H, W, 3)
                photo, view = divmod(number, images.views)
                if view == 0:
                    self.photos.append(
                        Photo(images.names[photo] if images.names else f"image {photo}", hash_of(pixels))
                    )
                    self._pictures.append(_encode(pixels))
                number += 1
            yield batch

    def first_alike(self) -> list[int]:
        """The number of every photo, or that of the first one with the same pixels."""
        first: dict[str, int] = {}
        return [first.setdefault(photo.pixels, number) for number, photo in enumerate(self.photos)]

    def refuse_known(self, images: Tensor) -> None:
        """Raise a PatchCoreError if the detector has learnt one of (B, 3, H, W) images, which cannot calibrate it."""
        known = {photo.pixels: photo.name for photo in self.photos}
        for pixels in images.permute(0, 2, 3, 1).contiguous().numpy():
            if name := known.get(hash_of(pixels)):
                raise PatchCoreError(
                    f"the model was trained on an image that should calibrate it ({name}): calibrate with images that"
                    " it has not learnt, or train again, which calibrates without any"
                )

    def fingerprint(self) -> str:
        """A hash of the pixels of all photos, in their order."""
        return hashlib.sha256("".join(photo.pixels for photo in self.photos).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the pictures, if there are any, into an existing folder."""
        if self._pictures:
            with zipfile.ZipFile(folder / PICTURES_FILE, "w") as archive:
                for number, picture in enumerate(self._pictures):
                    archive.writestr(zipfile.ZipInfo(f"{number:06d}.jpg"), picture)  # the time of writing left out

    @classmethod
    def read(cls, folder: Path, photos: Sequence[Photo], side: int) -> Album:
        """The album of a stored model, whose network sees squares of `side` pixels.

        Raises:
            PatchCoreError: the pictures cannot be read.
        """
        path = folder / PICTURES_FILE
        if not photos or not path.exists():
            return cls(photos, side=side)
        try:
            with zipfile.ZipFile(path) as archive:
                size = path.stat().st_size
                entries = archive.infolist()
                if len(entries) != len(photos) or sum(entry.file_size for entry in entries) > size:
                    raise ValueError(f"{len(entries)} pictures of {len(photos)} photos")
                return cls(photos, [archive.read(entry) for entry in entries], side)
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise PatchCoreError(f"{path}: cannot read the pictures of the training images: {error}") from error


def each_once(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Pass batches (B, 3, H, W) on without images that were there before; the log says how many."""
    seen: set[str] = set()
    count = 0
    for images in batches:
        hashes = [hash_of(pixels) for pixels in images.permute(0, 2, 3, 1).contiguous().numpy()]
        new = [number for number, one in enumerate(hashes) if one not in seen and one not in hashes[:number]]
        seen.update(hashes)
        count += len(hashes) - len(new)
        if new:
            yield images[new]
    if count:
        log.warning("%d images are the same as others, pixel by pixel: each counts once", count)


def hash_of(pixels: NDArray[np.uint8]) -> str:
    """What tells an image by its (H, W, 3) pixels."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
