"""The images of one category: split, and with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcore.datasets.geometry import Geometry
from patchcore.datasets.images import _image_size, load_mask
from patchcore.types import PatchCoreError, Sample


def split_train(
    samples: Sequence[Sample], fraction: float, generator: np.random.Generator
) -> tuple[list[Sample], list[Sample]]:
    """Split training images at random into those kept and those held out, both in their given order.

    Args:
        samples: the training images.
        fraction: share of the images that is kept, in (0, 1]. Below 1 each part gets at least one image.
        generator: decides which images are held out.

    Raises:
        PatchCoreError: one image cannot be split in two.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"train_val_split must be in (0, 1], got {fraction}")
    if fraction == 1:
        return list(samples), []
    n = len(samples)
    if n < 2:
        raise PatchCoreError(
            f"train_val_split {fraction} needs at least 2 training images, got {n}; add images or use 1.0"
        )
    n_kept = min(max(round(fraction * n), 1), n - 1)
    kept = set(generator.permutation(n)[:n_kept].tolist())
    return [samples[i] for i in range(n) if i in kept], [samples[i] for i in range(n) if i not in kept]


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
        if sample.mask_path is not None:
            row[:] = geometry.mask(_load_mask_of(sample.path, sample.mask_path))
    return masks


def _load_mask_of(image_path: Path, mask_path: Path) -> Image.Image:
    mask, (width, height) = load_mask(mask_path), _image_size(image_path)
    if mask.size != (width, height):
        raise PatchCoreError(
            f"the mask {mask_path} is {mask.width}x{mask.height}, but its image {image_path} is "
            f"{width}x{height}; save the mask at the size of the image"
        )
    return mask
