"""What parts are drawn with: signed distance fields (negative inside, in image sides), noise and light."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Field = NDArray[np.float32]  # (S, S): a distance, an alpha in [0, 1] or a brightness


Colour = NDArray[np.float32]  # (3, S, S) or, if it is the same everywhere, (3, 1, 1) RGB in [0, 1]


def _rgb(red: int, green: int, blue: int) -> Colour:
    return np.array((red, green, blue), np.float32)[:, None, None] / 255


STEEL = _rgb(146, 147, 142)


def _grid(size: int) -> tuple[Field, Field]:
    """x and y of the pixel centres, in image sides."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    return x, y


def _turned(x: Field, y: Field, centre: ArrayLike, angle: float) -> tuple[Field, Field]:
    """A part's own coordinates u, v, for a part at `centre` turned by `angle` (radians)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    return cos * dx + sin * dy, cos * dy - sin * dx


def _length(a: Field, b: Field) -> Field:
    return np.sqrt(a * a + b * b)  # a few times faster than np.hypot, which guards against overflow


def _box(u: Field, v: Field, half_width: float, half_height: float, rounding: float) -> Field:
    a, b = np.abs(u) - (half_width - rounding), np.abs(v) - (half_height - rounding)
    return _length(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - rounding


def _slot(u: Field, v: Field, half_length: float, radius: float) -> Field:
    """A round-ended slot along u; a disc for half_length 0."""
    return _length(np.maximum(np.abs(u) - half_length, 0) if half_length else u, v) - radius


def _bar(x: Field, y: Field, start: tuple[float, float], end: tuple[float, float], radius: float) -> Field:
    """A round bar between two points."""
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    along = (end[0] - start[0], end[1] - start[1])
    u, v = _turned(x, y, middle, np.arctan2(along[1], along[0]))
    return _slot(u, v, float(np.hypot(*along)) / 2, radius)


def _inside(distance: Field, softness: float = 0.0) -> Field:
    """Coverage in [0, 1]: the edge is `softness` image sides wide, but at least a pixel (anti-aliasing)."""
    return np.clip(0.5 - distance / max(softness, 1 / len(distance)), 0, 1)


def _relief(distance: Field, width: float, sun: float) -> Field:
    """In [-1, 1]: how a bevel of `width` along the edge faces the light that comes from the angle `sun`."""
    down, right = np.gradient(distance, np.float32(1 / len(distance)))
    facing = right * np.float32(np.cos(sun)) + down * np.float32(np.sin(sun))
    return facing * np.clip(1 + distance / width, 0, 1)


def _clouds(rng: np.random.Generator, size: int, cells: int, octaves: int = 3) -> Field:
    """Noise of about zero mean and unit deviation, with blotches of a `cells`-th of the image and finer."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        side = min(cells << octave, size)
        coarse = rng.standard_normal((side, side), dtype=np.float32)
        fine = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        total += np.asarray(fine) / (1 + octave)
    return total / total.std()


def _lay(canvas: Colour, alpha: Field, colour: Colour) -> None:
    """Lay a colour over the canvas, in place."""
    canvas += alpha * (colour - canvas)


def _daylight(rng: np.random.Generator, x: Field, y: Field) -> Field:
    """Brightness around 1: a gradient in a random direction, a lamp somewhere, and exposure."""
    u, _ = _turned(x, y, (0.5, 0.5), rng.uniform(0, 2 * np.pi))
    lamp_x, lamp_y = rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75)
    fall_off = 0.16 * ((x - lamp_x) ** 2 + (y - lamp_y) ** 2)
    return rng.uniform(0.96, 1.05) * (1 + rng.uniform(0.03, 0.16) * u - fall_off)
