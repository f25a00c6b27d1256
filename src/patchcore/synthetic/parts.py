"""Draw categories of parts: a plate on a hook, brackets on a table, and their faults.

A fault is an alpha and a colour that are blended over a finished scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from patchcore.synthetic.fields import (
    STEEL,
    ColourField,
    Field,
    bar,
    blend,
    box,
    clouds,
    coverage,
    daylight,
    norm,
    pixel_grid,
    relief,
    rgb,
    rotate,
    slot,
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A fault-free scene in front of the camera, and what the faults need to know of it.

    Attributes:
        canvas: (3, S, S) RGB in [0, 1], finished but for the sensor noise.
        depth: (S, S) distance to the nearest edge of a part, in image sides; negative off the parts.
        light: (S, S) brightness of an unbevelled surface.
        paint: (3, 1, 1) RGB of the parts.
        backdrop: (3, 1, 1) RGB of what lies behind them.
        holes: a signed distance field (S, S) for every hole that belongs there.
    """

    canvas: ColourField
    depth: Field
    light: Field
    paint: ColourField
    backdrop: ColourField
    holes: tuple[Field, ...]

    @property
    def size(self) -> int:
        return len(self.depth)


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """The shape and paint of a bracket seen from above; lengths in image sides, all within 0.2 of u = v = 0.

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
    """Draw a blue plate with a hole and a notched corner that hangs on a wire hook at a random angle."""
    x, y = pixel_grid(size)
    light = daylight(rng, x, y)
    paint, backdrop = rgb(8, 62, 160) * rng.uniform(0.92, 1.08), rgb(172, 172, 169)
    hang_x, hang_y = rng.uniform(0.46, 0.53), rng.uniform(0.46, 0.52)
    u, v = rotate(x, y, (hang_x, hang_y), rng.integers(4) * np.pi / 2 + rng.uniform(-0.6, 0.6))
    scale, radius = rng.uniform(0.93, 1.07), 0.066
    half_width, half_height = 0.29 * scale, 0.227 * scale
    hole = slot(u, v, 0.0, radius)
    notch = slot(u - half_width, v - half_height, 0.0, 0.055)
    plate = np.maximum(box(u, v, half_width, half_height, 0.004), -np.minimum(hole, notch))
    wire = bar(x, y, (hang_x - 0.03, -0.1), (hang_x - 0.03, hang_y - radius), 0.007)
    start = (hang_x - 0.01, hang_y - radius + 0.005)
    tip = (start[0] + rng.uniform(0.1, 0.13), start[1] - rng.uniform(0.16, 0.2))
    hook = bar(x, y, start, tip, 0.011)
    shade = bar(x, y, start, (start[0] + 0.26, start[1] + rng.uniform(-0.01, 0.02)), 0.008)

    canvas = backdrop * light
    steel = 0.8 * STEEL * light
    blend(canvas, coverage(wire), steel * (1 + 0.45 * relief(wire, 0.007, np.pi)))
    light = light * (1 - 0.5 * coverage(shade, 0.025))
    # The lacquer is uneven: fine grain everywhere, glints where the plate catches the lamp.
    glints = np.clip(clouds(rng, size, size // 3, 1) - 1.4, 0, 2) * np.clip(-u * 2.5 - 0.25, 0, 1)
    sheen = 1 + 0.025 * clouds(rng, size, size // 4, 2) + 0.06 * clouds(rng, size, 3, 1)
    edge = 1 + 0.35 * relief(plate, 0.008, -2.4)
    face = paint * (light * sheen * edge) + 0.16 * glints
    blend(canvas, coverage(plate), face)
    blend(canvas, coverage(hook), steel * (1 + 0.5 * relief(hook, 0.011, -2.4)))
    depth = -np.maximum(plate, 0.004 - hook)
    return Scene(canvas=canvas, depth=depth, light=light, paint=paint, backdrop=backdrop, holes=(hole,))


def draw_brackets(rng: np.random.Generator, size: int, bracket: Bracket) -> Scene:
    """Draw two equal brackets that lie on a table, each at a random angle."""
    x, y = pixel_grid(size)
    light = daylight(rng, x, y)
    paint, backdrop = rgb(*bracket.paint) * rng.uniform(0.95, 1.04), rgb(*bracket.backdrop)
    table = 1 + 0.008 * clouds(rng, size, size // 4, 1) + 0.015 * clouds(rng, size, 4, 1)
    canvas = backdrop * (light * table)
    u, v, first = _place_two(rng, x, y)
    outline = np.min([box(u - a, v - b, w, h, 0.014) for a, b, w, h in bracket.boxes], axis=0)
    slots = [slot(u - a, v - b, length, radius) for a, b, length, radius in bracket.slots]
    part = np.maximum(outline, -np.min(slots, axis=0))
    fall = round(0.012 * size)
    blend(canvas, 0.4 * coverage(np.roll(part, (fall, fall), (0, 1)), 0.03), np.float32(0.1))
    bend = u - bracket.fold
    tilt = rng.uniform(0.07, 0.12) * np.clip(bend / 0.012, -1, 1)
    gloss = 0.05 * np.clip(1 - np.abs(bend) / 0.012, 0, 1)
    grain = 0.006 * clouds(rng, size, size // 3, 1)
    edge = 0.3 * relief(part, 0.011, rng.uniform(-2.5, -1.9))
    blend(canvas, coverage(part), paint * (light * (1 + tilt) * (1 + grain + edge)) + gloss)
    holes = tuple(np.where(own, hole, 1) for own in (first, ~first) for hole in slots)
    return Scene(canvas=canvas, depth=-part, light=light, paint=paint, backdrop=backdrop, holes=holes)


def _place_two(rng: np.random.Generator, x: Field, y: Field) -> tuple[Field, Field, NDArray[np.bool_]]:
    """Place two parts on opposite sides; give every pixel the coordinates u, v of the part nearest to it.

    Both parts are then drawn at once, if neither reaches further than 0.2 from its centre. They stay
    clear of each other and within the 7/8 of the image that the usual centre crop (256 to 224) leaves.
    Returns u, v and where the first part is the nearest.
    """
    angle = rng.uniform(0, 2 * np.pi)
    offset = 0.225 * np.array((np.cos(angle), np.sin(angle)))
    first_centre, second_centre = 0.5 + offset, 0.5 - offset + rng.uniform(-0.01, 0.01, 2)
    turns = rng.integers(4, size=2) * np.pi / 2 + rng.uniform(-0.35, 0.35, 2)
    u1, v1 = rotate(x, y, first_centre, turns[0])
    u2, v2 = rotate(x, y, second_centre, turns[1])
    first = norm(u1, v1) < norm(u2, v2)
    return np.where(first, u1, u2), np.where(first, v1, v2), first


Fault = Callable[[np.random.Generator, Scene, float], tuple[Field, ColourField]]
"""(generator, scene, severity in [0, 1]) -> alpha (S, S) and colour (3, S, S) to blend over the scene."""

RUST_DARK, RUST_BRIGHT, RUST_GREY = rgb(62, 46, 26), rgb(134, 88, 30), rgb(112, 114, 94)


def _pick_spot(rng: np.random.Generator, scene: Scene, margin: float) -> tuple[float, float]:
    """Pick a random point of a part, at least `margin` from its edges if the part is that wide."""
    fitting = np.flatnonzero(scene.depth >= min(margin, scene.depth.max()))
    row, column = divmod(int(rng.choice(fitting)), scene.size)
    return (column + 0.5) / scene.size, (row + 0.5) / scene.size


def _clip_to_parts(scene: Scene, alpha: Field) -> Field:
    return alpha * coverage(-scene.depth)


def _draw_blots(rng: np.random.Generator, scene: Scene, radius: float, count: int) -> Field:
    """Draw ragged blots on the parts: a field that is roughly their signed distance."""
    x, y = pixel_grid(scene.size)
    spots = [_pick_spot(rng, scene, 0.01) for _ in range(count)]
    round_blots = np.min([slot(x - left, y - top, 0.0, radius) for left, top in spots], axis=0)
    return round_blots + radius * np.clip(0.4 * clouds(rng, scene.size, 20), -0.7, 0.7)


def _mix_rust(rng: np.random.Generator, scene: Scene) -> ColourField:
    """Mix blotches of dark, orange and grey corrosion, lit like the part."""
    warmth = np.clip(0.4 + 0.4 * clouds(rng, scene.size, 13), 0, 1)
    crust = np.clip(0.7 * clouds(rng, scene.size, 14) - 0.2, 0, 0.85)
    colour = RUST_DARK + warmth * (RUST_BRIGHT - RUST_DARK)
    blend(colour, crust, RUST_GREY)
    return colour * (scene.light * (1 + 0.12 * clouds(rng, scene.size, scene.size // 2, 1)))


def rust_all_over(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, ColourField]:
    """No paint left."""
    return _clip_to_parts(scene, np.full_like(scene.depth, 0.7 + 0.3 * severity)), _mix_rust(rng, scene)


def rust_beyond_line(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, ColourField]:
    """Rust on one side of a straight line through the part."""
    x, y = pixel_grid(scene.size)
    u, _ = rotate(x, y, _pick_spot(rng, scene, 0.06), rng.uniform(0, 2 * np.pi))
    return _clip_to_parts(scene, (0.6 + 0.4 * severity) * coverage(u, 0.01)), _mix_rust(rng, scene)


def rust_blots(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, ColourField]:
    """A few ragged spots of rust."""
    radius = 0.016 + 0.022 * severity
    blots = _draw_blots(rng, scene, radius, int(rng.integers(1, 4)))
    return _clip_to_parts(scene, (0.6 + 0.4 * severity) * coverage(blots, 0.01)), _mix_rust(rng, scene)


def scratches(
    rng: np.random.Generator, scene: Scene, severity: float, *, strokes: int, spread: float
) -> tuple[Field, ColourField]:
    """Up to `strokes` curved scratches of one direction around a spot, through the paint to the metal."""
    zoom = 4  # PIL draws without anti-aliasing: draw large, then average
    unit = zoom * scene.size
    drawing = Image.new("L", (unit, unit))
    pen = ImageDraw.Draw(drawing)
    spot, direction = np.array(_pick_spot(rng, scene, 0.02)), rng.uniform(0, np.pi)
    t = np.linspace(-1, 1, 13)[:, None]  # (K, 1) along a stroke
    for stroke in range(1 + round(severity * (strokes - 1))):
        angle = direction + rng.normal(0, 0.12)
        along = np.array((np.cos(angle), np.sin(angle)))
        across = np.array((-along[1], along[0]))
        centre = spot + (rng.normal(0, spread, 2) if stroke else 0)  # the first is surely on the part
        length, bend = rng.uniform(0.035, 0.1), rng.normal(0, 0.012)
        path = unit * (centre + length * t * along + bend * (t**2) * across)  # (K, 2)
        width = unit * rng.uniform(0.003, 0.0075) * (0.5 + 0.5 * severity)
        for i, taper in enumerate(1 - 0.75 * np.abs(t[1:, 0] - 1 / 12)):
            pen.line([tuple(path[i]), tuple(path[i + 1])], fill=255, width=max(zoom, round(width * taper)))
    alpha = np.asarray(drawing.reduce(zoom), np.float32) / 255
    shade = rng.uniform(0.4, 0.75) if scene.paint.mean() > 0.5 else rng.uniform(0.7, 1.25)
    metal = STEEL * shade * scene.light
    return _clip_to_parts(scene, (0.5 + 0.45 * severity) * alpha), metal


def drilled_hole(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, ColourField]:
    """A hole that should not be there, with a burr of bare metal."""
    x, y = pixel_grid(scene.size)
    radius = max(0.008 + 0.016 * severity, 1.5 / scene.size)
    left, top = _pick_spot(rng, scene, radius + 0.01)
    hole = slot(x - left, y - top, 0.0, radius)
    colour = 0.6 * scene.backdrop * scene.light
    blend(colour, coverage(-hole), STEEL * (1 + 0.4 * relief(-hole, 0.01, -2.3)))
    return _clip_to_parts(scene, coverage(hole - 0.004)), colour


def missing_hole(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, ColourField]:
    """A hole that was not punched through: the paint goes on over it and over the punch's dent."""
    hole = scene.holes[rng.integers(len(scene.holes))]
    dent = 1 - (0.2 + 0.6 * severity) * relief(hole, 0.012, -2.2)
    return coverage(hole - 0.012, 0.004), scene.paint * (scene.light * dent)


def bare_metal(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, ColourField]:
    """A spot without paint."""
    blot = _draw_blots(rng, scene, 0.018 + 0.027 * severity, 1)
    brushed = 1 + 0.08 * clouds(rng, scene.size, scene.size // 2, 1)
    rim = 0.8 - 0.25 * coverage(-blot, 0.01)
    metal = STEEL * (scene.light * brushed * rim)
    return _clip_to_parts(scene, (0.55 + 0.45 * severity) * coverage(blot)), metal


def paint_run(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, ColourField]:
    """Too much paint: a drop that ran before it dried, or a round bump."""
    x, y = pixel_grid(scene.size)
    radius = 0.013 + 0.009 * severity
    u, v = rotate(x, y, _pick_spot(rng, scene, 0.02), rng.uniform(0, 2 * np.pi))
    tapered = v * (1.4 - 10 * u)  # wider at one end, where the drop came to rest
    drop = slot(u, tapered if rng.random() < 0.6 else v, 0.0, radius)
    swell = (0.35 + 0.45 * severity) * relief(drop, radius, -2.2)
    wet = 0.25 * np.clip(swell, 0, 1)  # thick paint shines, black paint too
    return _clip_to_parts(scene, coverage(drop)), scene.paint * (scene.light * (1 + swell)) + wet


FEW_SCRATCHES = partial(scratches, strokes=5, spread=0.015)
MANY_SCRATCHES = partial(scratches, strokes=70, spread=0.05)

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a category is drawn, and its faults by folder name; each picture shows one of them."""

    draw: Callable[[np.random.Generator, int], Scene]
    faults: Mapping[str, tuple[Fault, ...]]


CATEGORIES: Mapping[str, Recipe] = {
    "metal_plate": Recipe(
        draw=draw_plate,
        faults={
            "hole": (drilled_hole,),
            "major_rust": (rust_beyond_line, rust_blots),
            "scratches": (FEW_SCRATCHES, MANY_SCRATCHES),
            "total_rust": (rust_all_over,),
        },
    ),
    "bracket_white": Recipe(
        draw=partial(draw_brackets, bracket=WHITE),
        faults={"defective_painting": (bare_metal, paint_run), "rust": (rust_blots,), "scratches": (FEW_SCRATCHES,)},
    ),
    "bracket_brown": Recipe(
        draw=partial(draw_brackets, bracket=BROWN),
        faults={"parts_mismatch": (missing_hole, drilled_hole), "rust": (rust_blots,), "scratches": (FEW_SCRATCHES,)},
    ),
    "bracket_black": Recipe(
        draw=partial(draw_brackets, bracket=BLACK),
        faults={
            "defective_painting": (bare_metal, paint_run),
            "hole": (drilled_hole, missing_hole),
            "scratches": (FEW_SCRATCHES,),
        },
    ),
}
