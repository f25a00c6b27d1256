"""Settings of small detectors that learn in a moment, and images for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

LITE0 = "efficientnet_lite0"
ONE = {
    "backbones": [LITE0],
    "layers": [["blocks.2", "blocks.4"]],
    "target_embed_dimension": 48,
    "fraction": 0.3,
    "weights": "random",
}
TWO = {**ONE, "backbones": [LITE0, f"{LITE0}.seed-1"], "layers": [["blocks.2"], ["blocks.3"]]}


def pixels(count: int, seed: int) -> list[np.ndarray]:
    """So many images of noise, (80, 96, 3) uint8."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, 80, 96, 3), dtype=np.uint8))


def write(folder: Path, pictures: list[np.ndarray]) -> Path:
    """Write images into a new folder, which is returned."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder
