"""Write a data set of drawn parts in MPDD's layout.

A fault is blended over the finished scene, so that the scene without it stays at hand: the mask is what differs
between the two pictures.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcore.synthetic.fields import ColourField
from patchcore.synthetic.parts import CATEGORIES
from patchcore.types import PatchCoreError

MIN_CHANGE = 4  # grey levels: smaller changes by a fault are undone, so that the mask is exact

NOISE_STD = 1.1  # standard deviation of the sensor noise in grey levels


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One rendered image and its truth.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        clean: (S, S, 3) uint8 RGB, the same picture without its fault; equal to `image` outside the mask.
        mask: (S, S) bool, True exactly where `image` differs from `clean`; empty for good pictures only.
    """

    image: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def render(category: str, folder: str, index: int, *, size: int = 256, seed: int = 0) -> Picture:
    """Render one picture; the same arguments give the same pixels, however many others are rendered.

    Args:
        category: a key of `CATEGORIES`.
        folder: "train/good", "test/good" or "test/" and one of the category's faults.
        index: the number of the picture in its folder, from 0; it also sets how severe the fault is.
        size: side of the picture in pixels.
        seed: seed of the data set.
    """
    key = (zlib.crc32(category.encode()), zlib.crc32(folder.encode()), index)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    recipe = CATEGORIES[category]
    scene = recipe.draw(rng, size)
    noise = NOISE_STD * rng.standard_normal((3, size, size), dtype=np.float32)
    clean = _expose(scene.canvas, noise)
    mask = np.zeros((size, size), bool)
    defect = folder.rpartition("/")[2]
    if defect == "good":
        return Picture(image=clean, clean=clean, mask=mask)
    faults = recipe.faults[defect]
    fault = faults[rng.integers(len(faults))]
    severity = spread_severity(index)
    while not mask.any():  # the faintest fault may fall where it does not show: then try another place
        alpha, colour = fault(rng, scene, severity)
        image = _expose(scene.canvas + alpha * (colour - scene.canvas), noise)
        mask = (np.abs(image.astype(np.int16) - clean) >= MIN_CHANGE).any(axis=2)
    return Picture(image=np.where(mask[..., None], image, clean), clean=clean, mask=mask)


def spread_severity(index: int) -> float:
    """The severity in [0, 1) of the fault number `index` of a folder: evenly spread wherever the numbering ends.

    The multiples of the golden ratio, modulo 1, never leave a large gap (Weyl's sequence).
    """
    return (0.5 + index * 0.6180339887) % 1


def _expose(canvas: ColourField, noise: ColourField) -> NDArray[np.uint8]:
    return np.clip(np.rint(255 * canvas + noise), 0, 255).astype(np.uint8).transpose(1, 2, 0)  # (S, S, 3)


def generate(
    root: Path,
    *,
    categories: Iterable[str] = tuple(CATEGORIES),
    num_train: int = 20,
    num_test_good: int = 8,
    num_per_defect: int = 6,
    size: int = 256,
    seed: int = 0,
) -> None:
    """Write a synthetic data set in MPDD's layout to `root`, each category whole or not at all.

    Args:
        root: the folder that receives a folder per category; created if it is missing.
        categories: keys of `CATEGORIES`, each once.
        num_train: good training images per category, >= 1.
        num_test_good: good test images per category, >= 1.
        num_per_defect: test images, with mask, for every kind of fault, >= 1.
        size: side of the images in pixels, >= 64.
        seed: the same seed gives the same bytes; >= 0.

    Raises:
        ValueError: an argument is out of its range.
        PatchCoreError: a category's folder exists already and is not empty.
    """
    categories = tuple(categories)
    if not categories or len(set(categories)) < len(categories) or not set(categories) <= set(CATEGORIES):
        raise ValueError(f"categories must be some of {', '.join(CATEGORIES)}, each once, got {categories}")
    counts = {"num_train": num_train, "num_test_good": num_test_good, "num_per_defect": num_per_defect}
    least = dict.fromkeys(counts, 1) | {"size": 64, "seed": 0}
    for name, value in {**counts, "size": size, "seed": seed}.items():
        if value < least[name]:
            raise ValueError(f"{name} must be at least {least[name]}, got {value}")
    if root.exists() and not root.is_dir():
        raise PatchCoreError(f"{root} is a file, not a folder to write a data set to; name another place")
    for target in (root / category for category in categories):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise PatchCoreError(f"{target} exists and is not an empty folder; remove it or write somewhere else")
    root.mkdir(parents=True, exist_ok=True)
    for category in categories:
        with tempfile.TemporaryDirectory(prefix=".synthetic_", dir=root) as aside:
            made = Path(aside) / category
            faulty = {f"test/{defect}": num_per_defect for defect in CATEGORIES[category].faults}
            for folder, count in {"train/good": num_train, "test/good": num_test_good, **faulty}.items():
                for index in range(count):
                    _write(made, folder, index, render(category, folder, index, size=size, seed=seed))
            target = root / category
            if target.exists():
                target.rmdir()  # empty, as checked above; Windows does not rename onto it
            made.rename(target)


def _write(root: Path, folder: str, index: int, picture: Picture) -> None:
    """Write test/scratches/000.png, say, and ground_truth/scratches/000_mask.png if it has a fault."""
    defect = folder.rpartition("/")[2]
    files = {root / folder / f"{index:03d}.png": picture.image}
    if defect != "good":
        files[root / "ground_truth" / defect / f"{index:03d}_mask.png"] = np.uint8(255) * picture.mask
    for path, pixels in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Light compression: noise hardly shrinks further, and compression would take most of the time.
        Image.fromarray(pixels).save(path, compress_level=1)
