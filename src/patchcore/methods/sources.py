"""Images from anywhere on their way to a detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import read_image_size, to_rgb
from patchcore.datasets.layout import list_images
from patchcore.types import PatchCoreError

ImageLike = str | Path | Image.Image | NDArray[np.uint8]
"""The path of an image file, a Pillow image, or RGB pixels (H, W, 3) uint8 in [0, 255]."""


class Sources:
    """Images from anywhere, as the network sees them: (3, imagesize, imagesize) uint8."""

    def __init__(self, images: Sequence[ImageLike], geometry: Geometry) -> None:
        self._images = images
        self._geometry = geometry
        self.sizes = [(0, 0)] * len(images)  # (width, height) of each, once it was read
        for image in images:
            if isinstance(image, Image.Image):
                try:
                    image.load()  # here, since threads that load one image at the same time damage it
                except (OSError, SyntaxError, ValueError) as error:
                    raise PatchCoreError(f"cannot read the image: {error}") from error
                if 0 in image.size:
                    raise ValueError(f"an image has one pixel or more, got {image.width} x {image.height}")

    def part(self, chosen: Sequence[int]) -> Sources:
        """Some of the images, by their numbers."""
        return Sources([self._images[number] for number in chosen], self._geometry)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        image = self._open(self._images[index])
        self.sizes[index] = image.size
        if self._geometry.reduced_decoding and isinstance(source := self._images[index], str | Path):
            self.sizes[index] = read_image_size(Path(source))
        return self._geometry.image(image)

    def _open(self, image: ImageLike) -> Image.Image:
        if isinstance(image, str | Path):
            return self._geometry.open(Path(image))
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(
                    "an image as an array must be RGB pixels (H, W, 3) uint8 in [0, 255], got"
                    f" {image.shape} {image.dtype}"
                )
            return Image.fromarray(image)
        if isinstance(image, Image.Image):
            return to_rgb(image.copy(), "the image")  # it would lose its transparency
        raise TypeError(
            f"an image must be a path, a Pillow image or an array (H, W, 3) uint8, got {type(image).__name__}"
        )


def listed(images: ImageLike | list[Any] | tuple[Any, ...]) -> Sequence[ImageLike]:
    return images if isinstance(images, list | tuple) else [images]


def images_in(images: ImageLike | list[Any] | tuple[Any, ...]) -> Sequence[ImageLike]:
    """Images, or those of a folder."""
    if isinstance(images, str) and not images:
        raise ValueError("expected a folder of images, or images, got an empty path")
    if isinstance(images, str | Path) and Path(images).is_dir():
        return list_images(Path(images))
    return listed(images)
