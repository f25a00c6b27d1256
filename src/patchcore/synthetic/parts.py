"""The parts: a plate on a hook and brackets on a table, without a fault."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchcore.synthetic.fields import (
    STEEL,
    Colour,
    Field,
    _bar,
    _box,
    _clouds,
    _daylight,
    _grid,
    _inside,
    _lay,
    _length,
    _relief,
    _rgb,
    _slot,
    _turned,
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A fault-free picture before the camera, and what faults need to know of it.

    Attributes:
        canvas: (3, S, S) RGB in [0, 1], finished but for the sensor noise.
        depth: (S, S) distance to the nearest edge of a part, in image sides; negative off the parts.
        light: (S, S) brightness of an unbevelled surface.
        paint: (3, 1, 1) RGB of the parts.
        backdrop: (3, 1, 1) RGB of what lies behind them.
        holes: a signed distance field (S, S) for every hole that belongs there.
    """

    canvas: Colour
    depth: Field
    light: Field
    paint: Colour
    backdrop: Colour
    holes: tuple[Field, ...]

    @property
    def size(self) -> int:
        return len(self.depth)


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """A painted bracket from above, as data; lengths in image sides, none further than 0.2 from u = v = 0.

    Attributes:
        paint: RGB in [0, 255].
        backdrop: RGB in [0, 255] of the table.
        boxes: (u, v, half width, half height) of the rectangles that together make the outline.
        slots: (u, v, half length, radius) of the holes; half length 0 makes them round.
        fold: the u at which the sheet is bent, so that the light changes.
    """

    paint: tuple[int, int, int]
    backdrop: tuple[int, int, int]
    boxes: tuple[tuple[float, float, float, float], ...]
    slots: tuple[tuple[float, float, float, float], ...]
    fold: float


def draw_plate(rng: np.random.Generator, size: int) -> Scene:
    """A blue plate with a hole and a notched corner that hangs on a wire hook, turned any way."""
    x, y = _grid(size)
    light = _daylight(rng, x, y)
    paint, backdrop = _rgb(8, 62, 160) * rng.uniform(0.92, 1.08), _rgb(172, 172, 169)
    hang_x, hang_y = rng.uniform(0.46, 0.53), rng.uniform(0.46, 0.52)
    u, v = _turned(x, y, (hang_x, hang_y), rng.integers(4) * np.pi / 2 + rng.uniform(-0.6, 0.6))
    scale, radius = rng.uniform(0.93, 1.07), 0.066
    half_width, half_height = 0.29 * scale, 0.227 * scale
    hole = _slot(u, v, 0.0, radius)
    notch = _slot(u - half_width, v - half_height, 0.0, 0.055)
    plate = np.maximum(_box(u, v, half_width, half_height, 0.004), -np.minimum(hole, notch))
    wire = _bar(x, y, (hang_x - 0.03, -0.1), (hang_x - 0.03, hang_y - radius), 0.007)
    start = (hang_x - 0.01, hang_y - radius + 0.005)
    tip = (start[0] + rng.uniform(0.1, 0.13), start[1] - rng.uniform(0.16, 0.2))
    hook = _bar(x, y, start, tip, 0.011)
    shade = _bar(x, y, start, (start[0] + 0.26, start[1] + rng.uniform(-0.01, 0.02)), 0.008)

    canvas = backdrop * light
    steel = 0.8 * STEEL * light
    _lay(canvas, _inside(wire), steel * (1 + 0.45 * _relief(wire, 0.007, np.pi)))
    light = light * (1 - 0.5 * _inside(shade, 0.025))
    # The lacquer is uneven: fine grain everywhere, glints where the plate catches the lamp.
    glints = np.clip(_clouds(rng, size, size // 3, 1) - 1.4, 0, 2) * np.clip(-u * 2.5 - 0.25, 0, 1)
    sheen = 1 + 0.025 * _clouds(rng, size, size // 4, 2) + 0.06 * _clouds(rng, size, 3, 1)
    edge = 1 + 0.35 * _relief(plate, 0.008, -2.4)
    face = paint * (light * sheen * edge) + 0.16 * glints
    _lay(canvas, _inside(plate), face)
    _lay(canvas, _inside(hook), steel * (1 + 0.5 * _relief(hook, 0.011, -2.4)))
    depth = -np.maximum(plate, 0.004 - hook)
    return Scene(canvas=canvas, depth=depth, light=light, paint=paint, backdrop=backdrop, holes=(hole,))


def draw_brackets(rng: np.random.Generator, size: int, bracket: Bracket) -> Scene:
    """Two equal brackets that lie on a table, each turned its own way."""
    x, y = _grid(size)
    light = _daylight(rng, x, y)
    paint, backdrop = _rgb(*bracket.paint) * rng.uniform(0.95, 1.04), _rgb(*bracket.backdrop)
    table = 1 + 0.008 * _clouds(rng, size, size // 4, 1) + 0.015 * _clouds(rng, size, 4, 1)
    canvas = backdrop * (light * table)
    u, v, first = _scattered(rng, x, y)
    outline = np.min([_box(u - a, v - b, w, h, 0.014) for a, b, w, h in bracket.boxes], axis=0)
    slots = [_slot(u - a, v - b, length, radius) for a, b, length, radius in bracket.slots]
    part = np.maximum(outline, -np.min(slots, axis=0))
    fall = round(0.012 * size)
    _lay(canvas, 0.4 * _inside(np.roll(part, (fall, fall), (0, 1)), 0.03), np.float32(0.1))
    bend = u - bracket.fold
    tilt = rng.uniform(0.07, 0.12) * np.clip(bend / 0.012, -1, 1)
    gloss = 0.05 * np.clip(1 - np.abs(bend) / 0.012, 0, 1)
    grain = 0.006 * _clouds(rng, size, size // 3, 1)
    edge = 0.3 * _relief(part, 0.011, rng.uniform(-2.5, -1.9))
    _lay(canvas, _inside(part), paint * (light * (1 + tilt) * (1 + grain + edge)) + gloss)
    holes = tuple(np.where(own, slot, 1) for own in (first, ~first) for slot in slots)
    return Scene(canvas=canvas, depth=-part, light=light, paint=paint, backdrop=backdrop, holes=holes)


def _scattered(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field, NDArray[np.bool_]]:
    """Place two parts on opposite sides; give every pixel the coordinates u, v of the part nearest to it.

    So both parts are drawn in one go, provided that neither reaches further than 0.2 from its centre. They
    stay clear of each other and within the 7/8 of the image that the usual centre crop (256 to 224) leaves.
    Returns u, v and where the first part is the nearest.
    """
    angle = rng.uniform(0, 2 * np.pi)
    offset = 0.225 * np.array((np.cos(angle), np.sin(angle)))
    first_centre, second_centre = 0.5 + offset, 0.5 - offset + rng.uniform(-0.01, 0.01, 2)
    turns = rng.integers(4, size=2) * np.pi / 2 + rng.uniform(-0.35, 0.35, 2)
    u1, v1 = _turned(x, y, first_centre, turns[0])
    u2, v2 = _turned(x, y, second_centre, turns[1])
    first = _length(u1, v1) < _length(u2, v2)
    return np.where(first, u1, u2), np.where(first, v1, v2), first


WHITE = Bracket(
    paint=(206, 205, 198),
    backdrop=(92, 94, 97),
    boxes=((0.0, -0.097, 0.14, 0.043), (-0.097, 0.0, 0.043, 0.14)),
    slots=((0.097, -0.097, 0.0, 0.02), (-0.097, 0.097, 0.0, 0.02), (0.01, -0.097, 0.025, 0.012)),
    fold=-0.047,
)


BROWN = Bracket(
    paint=(112, 72, 48),
    backdrop=(168, 168, 164),
    boxes=((0.0, -0.095, 0.147, 0.04), (0.0, 0.095, 0.147, 0.04), (-0.107, 0.0, 0.04, 0.13)),
    slots=((0.103, -0.095, 0.0, 0.018), (0.103, 0.095, 0.0, 0.018), (-0.107, 0.0, 0.0, 0.02)),
    fold=-0.06,
)


BLACK = Bracket(
    paint=(38, 39, 42),
    backdrop=(150, 151, 150),
    boxes=((0.0, -0.045, 0.165, 0.06), (0.12, 0.015, 0.045, 0.1)),
    slots=((-0.12, -0.045, 0.0, 0.022), (0.12, 0.07, 0.0, 0.016), (-0.015, -0.045, 0.04, 0.014)),
    fold=0.07,
)
