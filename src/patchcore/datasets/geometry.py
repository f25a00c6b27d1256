"""From a file's pixels to the network's: resizing and cropping."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from patchcore.datasets.images import load_image

REDUCED_DECODING = 2


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """From a file's pixels to the network's: the shorter side becomes `resize`, then the centre is cropped.

    Equal, bit for bit, to torchvision's Resize and CenterCrop on Pillow images, without their import time.

    Attributes:
        resize: pixels of the shorter side after resizing; the longer follows the aspect ratio, rounded down.
        imagesize: pixels of both sides after cropping, at most `resize`.
        reduced_decoding: large JPEG files are not decoded at their full size, but at no less than REDUCED_DECODING
            times `resize`. What resizing makes of that differs from the exact pixels by some tenths of a grey value.
    """

    resize: int
    imagesize: int
    reduced_decoding: bool = False

    def __post_init__(self) -> None:
        if self.imagesize < 1:
            raise ValueError(f"imagesize must be at least 1, got {self.imagesize}")
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
        return torch.from_numpy(np.array(self.picture(image))).permute(2, 0, 1)

    def mask(self, mask: Image.Image) -> NDArray[np.bool_]:
        """Return (imagesize, imagesize) bool, True on defects, from a mask as `load_mask` gives it."""
        return np.asarray(self._cropped(mask, Image.Resampling.NEAREST)) != 0

    def picture(self, image: Image.Image) -> Image.Image:
        """Return what the network sees, for people: RGB, imagesize x imagesize, uint8 in [0, 255]."""
        if image.mode != "RGB":
            raise ValueError(f"expected an image of mode RGB, got {image.mode}; read it with load_image")
        return self._cropped(image, Image.Resampling.BILINEAR)

    def _cropped(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        width, height = image.size
        longer = int(self.resize * max(width, height) / min(width, height))
        size = (self.resize, longer) if width <= height else (longer, self.resize)
        left, top = (round((side - self.imagesize) / 2) for side in size)
        return image.resize(size, resample).crop((left, top, left + self.imagesize, top + self.imagesize))
