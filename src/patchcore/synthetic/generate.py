"""A small, seeded, MPDD-shaped data set of drawn metal parts, so that the study's scripts run offline.

Parts are signed distance fields (negative inside, in fractions of the image side): coverage, bevels and
shadows all follow from the distance. A fault is an alpha and a colour laid over the finished part, so that
the fault-free picture stays at hand: the mask is what differs between the two.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchcore.synthetic.faults import (
    FEW,
    MANY,
    Fault,
    bare_metal,
    drilled_hole,
    missing_hole,
    paint_run,
    rust_all_over,
    rust_beyond_line,
    rust_blots,
)
from patchcore.synthetic.fields import Colour
from patchcore.synthetic.parts import BLACK, BROWN, WHITE, Scene, draw_brackets, draw_plate
from patchcore.types import PatchCoreError

VISIBLE = 4  # grey levels: what a fault changes by less is taken back, so that the mask is exact


NOISE = 1.1  # standard deviation of the sensor noise in grey levels


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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a category is drawn, and its faults by folder name; each picture shows one fault of the tuple."""

    draw: Callable[[np.random.Generator, int], Scene]
    faults: Mapping[str, tuple[Fault, ...]]


CATEGORIES: Mapping[str, Recipe] = {
    "metal_plate": Recipe(
        draw=draw_plate,
        faults={
            "hole": (drilled_hole,),
            "major_rust": (rust_beyond_line, rust_blots),
            "scratches": (FEW, MANY),
            "total_rust": (rust_all_over,),
        },
    ),
    "bracket_white": Recipe(
        draw=partial(draw_brackets, bracket=WHITE),
        faults={"defective_painting": (bare_metal, paint_run), "rust": (rust_blots,), "scratches": (FEW,)},
    ),
    "bracket_brown": Recipe(
        draw=partial(draw_brackets, bracket=BROWN),
        faults={"parts_mismatch": (missing_hole, drilled_hole), "rust": (rust_blots,), "scratches": (FEW,)},
    ),
    "bracket_black": Recipe(
        draw=partial(draw_brackets, bracket=BLACK),
        faults={
            "defective_painting": (bare_metal, paint_run),
            "hole": (drilled_hole, missing_hole),
            "scratches": (FEW,),
        },
    ),
}


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
    noise = NOISE * rng.standard_normal((3, size, size), dtype=np.float32)
    clean = _exposed(scene.canvas, noise)
    mask = np.zeros((size, size), bool)
    defect = folder.rpartition("/")[2]
    if defect == "good":
        return Picture(image=clean, clean=clean, mask=mask)
    faults = recipe.faults[defect]
    fault = faults[rng.integers(len(faults))]
    severity = severity_of(index)
    while not mask.any():  # the faintest fault may fall where it does not show: then elsewhere
        alpha, colour = fault(rng, scene, severity)
        image = _exposed(scene.canvas + alpha * (colour - scene.canvas), noise)
        mask = (np.abs(image.astype(np.int16) - clean) >= VISIBLE).any(axis=2)
    return Picture(image=np.where(mask[..., None], image, clean), clean=clean, mask=mask)


def severity_of(index: int) -> float:
    """The severity in [0, 1) of a folder's fault number `index`, spread evenly wherever the numbering ends.

    The multiples of the golden ratio, modulo 1, never leave a large gap (Weyl's sequence).
    """
    return (0.5 + index * 0.6180339887) % 1


def _exposed(canvas: Colour, noise: Colour) -> NDArray[np.uint8]:
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
        root: the folder that receives a folder per category; made if need be.
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
    for category in categories:
        _refuse_occupied(root / category)
    root.mkdir(parents=True, exist_ok=True)
    for category in categories:
        with tempfile.TemporaryDirectory(prefix=".synthetic_", dir=root) as aside:
            made = Path(aside) / category
            for folder, count in _folders(category, num_train, num_test_good, num_per_defect):
                for index in range(count):
                    _save(made, folder, index, render(category, folder, index, size=size, seed=seed))
            target = root / category
            if target.exists():
                target.rmdir()  # empty, as checked above; Windows does not rename onto it
            made.rename(target)


def _folders(category: str, num_train: int, num_test_good: int, num_per_defect: int) -> list[tuple[str, int]]:
    """The image folders of a category and how many pictures each gets."""
    faulty = [(f"test/{defect}", num_per_defect) for defect in CATEGORIES[category].faults]
    return [("train/good", num_train), ("test/good", num_test_good), *faulty]


def _refuse_occupied(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise PatchCoreError(f"{folder} exists and is not an empty folder; remove it or write somewhere else")


def _save(root: Path, folder: str, index: int, picture: Picture) -> None:
    """Write test/scratches/000.png, say, and ground_truth/scratches/000_mask.png if there is a fault."""
    defect = folder.rpartition("/")[2]
    files = {root / folder / f"{index:03d}.png": picture.image}
    if defect != "good":
        files[root / "ground_truth" / defect / f"{index:03d}_mask.png"] = np.uint8(255) * picture.mask
    for path, pixels in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Light compression: noise hardly shrinks further, and it would take most of the time.
        Image.fromarray(pixels).save(path, compress_level=1)
