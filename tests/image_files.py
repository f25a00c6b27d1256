"""Small image files and folders of them, for the tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchcore.types import PatchCoreError, Sample


def write_image(path: Path, color: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (color,) * 3 if mode == "RGB" else color).save(path)
    return path


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_category(root: Path, *paths: str) -> Path:
    for path in paths:
        write_image(root / path)
    return root


def write_plates(root: Path) -> Path:
    """Write one category: 2 training images, 1 good and 2 scratched test images with their masks."""
    return write_category(
        root,
        "plate/train/good/000.png",
        "plate/train/good/001.png",
        "plate/test/good/000.png",
        "plate/test/scratches/000.png",
        "plate/test/scratches/001.png",
        "plate/ground_truth/scratches/000_mask.png",
        "plate/ground_truth/scratches/001_mask.png",
    )


def write_noise(folder: Path) -> list[Sample]:
    """Write 11 good images of 20 x 17 px noise."""
    samples = [sample(folder / f"{i:03}.png") for i in range(11)]
    for i, one in enumerate(samples):
        noise(20, 17, seed=i).save(one.path)
    return samples


def sample(path: Path, defect: str = "good", mask_path: Path | None = None) -> Sample:
    return Sample(path=path, category="plate", split="test", defect=defect, mask_path=mask_path)


def one_line(error: pytest.ExceptionInfo[PatchCoreError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message
