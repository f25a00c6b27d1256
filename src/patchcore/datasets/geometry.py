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
from patchcore.types import PatchCoreError, Sample

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
        """Return the pixels of a file that the network sees, see `load_image` and `image`."""
        return self.image(load_image(path, REDUCED_DECODING * self.resize if self.reduced_decoding else None))

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

    def _crop(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        width, height = image.size
        longer = int(self.resize * max(width, height) / min(width, height))
        size = (self.resize, longer) if width <= height else (longer, self.resize)
        left, top = (round((side - self.imagesize) / 2) for side in size)
        return image.resize(size, resample).crop((left, top, left + self.imagesize, top + self.imagesize))


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
