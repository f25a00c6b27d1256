"""Draw with fields: signed distances, coverage, noise and light.

A part is a signed distance field, negative inside, in fractions of the image side: its coverage, bevels and shadows
all follow from the distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.floating]  # (S, S): a distance, an alpha in [0, 1] or a brightness
ColourField = NDArray[np.floating]  # RGB in [0, 1]: (3, S, S), or (3, 1, 1) if it is the same everywhere


def rgb(red: int, green: int, blue: int) -> ColourField:
    """A uniform colour from three values in [0, 255]."""
    return np.array((red, green, blue), np.float32)[:, None, None] / 255


STEEL = rgb(146, 147, 142)


def pixel_grid(size: int) -> tuple[Field, Field]:
    """x and y of the pixel centres, in image sides."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    return x, y


def rotate(x: Field, y: Field, centre: Sequence[float] | NDArray[np.floating], angle: float) -> tuple[Field, Field]:
    """The coordinates u, v of a part at `centre` that is turned by `angle` (radians)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    return cos * dx + sin * dy, cos * dy - sin * dx


def norm(a: Field, b: Field) -> Field:
    """The length of the vectors (a, b); a few times faster than np.hypot, which guards against overflow."""
    return np.sqrt(a * a + b * b)


def box(u: Field, v: Field, half_width: float, half_height: float, rounding: float) -> Field:
    """The distance to a rectangle around u = v = 0 with rounded corners."""
    a, b = np.abs(u) - (half_width - rounding), np.abs(v) - (half_height - rounding)
    return norm(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - rounding


def slot(u: Field, v: Field, half_length: float, radius: float) -> Field:
    """The distance to a slot along u with round ends; to a disc if `half_length` is 0."""
    return norm(np.maximum(np.abs(u) - half_length, 0) if half_length else u, v) - radius


def bar(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float], radius: float) -> Field:
    """The distance to a bar with round ends between two points."""
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    along = (end[0] - start[0], end[1] - start[1])
    u, v = rotate(x, y, middle, np.arctan2(along[1], along[0]))
    return slot(u, v, float(np.hypot(*along)) / 2, radius)


def coverage(distance: Field, softness: float = 0.0) -> Field:
    """How much of each pixel lies inside, in [0, 1]; the edge is `softness` image sides wide, at least a pixel."""
    return np.clip(0.5 - distance / max(softness, 1 / len(distance)), 0, 1)


def relief(distance: Field, width: float, sun: float) -> Field:
    """How a bevel of `width` along the edge faces the light from the angle `sun`, in [-1, 1]."""
    down, right = np.gradient(distance, np.float32(1 / len(distance)))
    facing = right * np.float32(np.cos(sun)) + down * np.float32(np.sin(sun))
    return facing * np.clip(1 + distance / width, 0, 1)


def clouds(rng: np.random.Generator, size: int, cells: int, octaves: int = 3) -> Field:
    """Smooth noise of mean about 0 and deviation 1, with blotches of 1 / `cells` of the image and finer ones."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        side = min(cells << octave, size)
        coarse = rng.standard_normal((side, side), dtype=np.float32)
        fine = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        total += np.asarray(fine) / (1 + octave)
    return total / total.std()


def blend(canvas: ColourField, alpha: Field, colour: ColourField | np.floating) -> None:
    """Blend a colour into the canvas, in place."""
    canvas += alpha * (colour - canvas)


def daylight(rng: np.random.Generator, x: Field, y: Field) -> Field:
    """A brightness around 1: a gradient in a random direction, a lamp at a random place, and the exposure."""
    u, _ = rotate(x, y, (0.5, 0.5), rng.uniform(0, 2 * np.pi))
    lamp_x, lamp_y = rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75)
    fall_off = 0.16 * ((x - lamp_x) ** 2 + (y - lamp_y) ** 2)
    return rng.uniform(0.96, 1.05) * (1 + rng.uniform(0.03, 0.16) * u - fall_off)
