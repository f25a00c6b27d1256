"""From the pixels of image and mask files to those of the network: resizing and cropping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcore.datasets.images import load_image, load_mask, read_image_size
from patchcore.settings import check, setting
from patchcore.types import MapRegion, PatchCoreError, Region, Sample

if TYPE_CHECKING:
    import torch

REDUCED_DECODING = 2  # a reduced JPEG keeps at least this many times the pixels of `resize`


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How images become the network's input: the shorter side is resized to `resize`, then the centre is cropped.

    Equal, bit for bit, to torchvision's Resize and CenterCrop on Pillow images, without their import time.

    Attributes:
        resize: pixels of the shorter side after resizing; the longer follows the aspect ratio, rounded down.
        imagesize: pixels of both sides after cropping, at most `resize`.
        reduced_decoding: decode large JPEG files at a fraction of their size, at least REDUCED_DECODING times
            `resize`. The resized pixels then differ from the exact ones by some tenths of a grey value.
    """

    resize: int = setting(at_least=1)
    imagesize: int = setting(at_least=1)
    reduced_decoding: bool = setting(False)

    def __post_init__(self) -> None:
        check(self)
        if self.imagesize > self.resize:
            raise ValueError(
                f"imagesize {self.imagesize} is larger than resize {self.resize}, so that the crop would pad "
                "the image with black; raise resize or lower imagesize"
            )

    def read(self, path: Path) -> torch.Tensor:
        """Return the pixels of a file that the network sees, see `open` and `image`."""
        return self.image(self.open(path))

    def open(self, path: Path) -> Image.Image:
        """Read a file, see `load_image`; a large JPEG file at a smaller scale if `reduced_decoding` says so."""
        return load_image(path, REDUCED_DECODING * self.resize if self.reduced_decoding else None)

    def image(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels that the network sees: (3, imagesize, imagesize) uint8 RGB, a view of (H, W, 3)."""
        import torch  # who reads what a stored model says of itself needs none

        return torch.from_numpy(np.array(self.picture(image))).permute(2, 0, 1)

    def mask(self, mask: Image.Image) -> NDArray[np.bool_]:
        """Return (imagesize, imagesize) bool, True on defects, from a mask as `load_mask` gives it."""
        return np.asarray(self._crop(mask, Image.Resampling.NEAREST)) != 0

    def picture(self, image: Image.Image) -> Image.Image:
        """Return what the network sees as a picture: RGB, imagesize x imagesize, uint8 in [0, 255]."""
        if image.mode != "RGB":
            raise ValueError(f"expected an image of mode RGB, got {image.mode}; read it with load_image")
        return self._crop(image, Image.Resampling.BILINEAR)

    def box_in_image(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the smallest box of whole pixels of an original image that holds a box of network pixels.

        Args:
            box: left, top, right, bottom in network pixels; right and bottom are exclusive.
            size: (width, height) of the original image.

        Raises:
            ValueError: the box is empty or does not lie within the network's input.
        """
        left, top, right, bottom = box
        side = self.imagesize
        if not (0 <= left < right <= side and 0 <= top < bottom <= side):
            raise ValueError(f"expected a box of at least one pixel within {side} x {side} network pixels, got {box}")
        (width, height), (x, y) = self._frame(size)
        # In whole numbers, so that no rounding moves an edge by a pixel; -(-a // b) rounds a / b up.
        return (
            (left + x) * size[0] // width,
            (top + y) * size[1] // height,
            -(-(right + x) * size[0] // width),
            -(-(bottom + y) * size[1] // height),
        )

    def region_in_image(self, region: MapRegion, size: tuple[int, int]) -> Region:
        """Return where a region of a map of the network's size lies in an original image.

        Args:
            region: as `regions.connected_regions` gives it.
            size: (width, height) of the original image.
        """
        (width, height), _ = self._frame(size)
        share = region.pixels / (width * height)
        area = share * size[0] * size[1]
        return Region(box=self.box_in_image(region.box, size), area=area, peak=region.peak, share=share)

    def _crop(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        size, (left, top) = self._frame(image.size)
        return image.resize(size, resample).crop((left, top, left + self.imagesize, top + self.imagesize))

    def _frame(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """(width, height) of an image -> its (width, height) after resizing, and (left, top) of the crop therein."""
        width, height = size
        longer = int(self.resize * max(width, height) / min(width, height))
        resized = (self.resize, longer) if width <= height else (longer, self.resize)
        left, top = (round((side - self.imagesize) / 2) for side in resized)
        return resized, (left, top)


def load_masks(samples: Sequence[Sample], geometry: Geometry) -> NDArray[np.bool_] | None:
    """Return the masks of all samples, (N, imagesize, imagesize) bool, True on defects, none in good images.

    None if a defective sample has no mask: pixel metrics are undefined then.

    Raises:
        PatchCoreError: a mask cannot be read, or its size is not that of its image.
    """
    if any(sample.is_defective and sample.mask_path is None for sample in samples):
        return None
    masks = np.zeros((len(samples), geometry.imagesize, geometry.imagesize), dtype=bool)
    for row, sample in zip(masks, samples, strict=True):
        if sample.mask_path is None:
            continue
        mask, (width, height) = load_mask(sample.mask_path), read_image_size(sample.path)
        if mask.size != (width, height):
            raise PatchCoreError(
                f"the mask {sample.mask_path} is {mask.width}x{mask.height}, but its image {sample.path} is "
                f"{width}x{height}; save the mask at the size of the image"
            )
        row[:] = geometry.mask(mask)
    return masks
