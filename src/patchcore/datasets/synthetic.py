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
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from patchcore.types import PatchCoreError

Field = NDArray[np.float32]  # (S, S): a distance, an alpha in [0, 1] or a brightness
Colour = NDArray[np.float32]  # (3, S, S) or, if it is the same everywhere, (3, 1, 1) RGB in [0, 1]

VISIBLE = 4  # grey levels: what a fault changes by less is taken back, so that the mask is exact
NOISE = 1.1  # standard deviation of the sensor noise in grey levels


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


Fault = Callable[[np.random.Generator, Scene, float], tuple[Field, Colour]]
"""(generator, scene, severity in [0, 1]) -> alpha (S, S) and colour (3, S, S) to lay over the scene."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a category is drawn, and its faults by folder name; each picture shows one fault of the tuple."""

    draw: Callable[[np.random.Generator, int], Scene]
    faults: Mapping[str, tuple[Fault, ...]]


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


# --- drawing tools -----------------------------------------------------------------------------------------


def _rgb(red: int, green: int, blue: int) -> Colour:
    return np.array((red, green, blue), np.float32)[:, None, None] / 255


STEEL = _rgb(146, 147, 142)
RUST_DARK, RUST_BRIGHT, RUST_GREY = _rgb(62, 46, 26), _rgb(134, 88, 30), _rgb(112, 114, 94)


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


# --- parts -------------------------------------------------------------------------------------------------


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


# --- faults ------------------------------------------------------------------------------------------------


def _spot(rng: np.random.Generator, scene: Scene, margin: float) -> tuple[float, float]:
    """A random point of a part, at least `margin` from its edges where the part is that wide."""
    fitting = np.flatnonzero(scene.depth >= min(margin, scene.depth.max()))
    row, column = divmod(int(rng.choice(fitting)), scene.size)
    return (column + 0.5) / scene.size, (row + 0.5) / scene.size


def _on_part(scene: Scene, alpha: Field) -> Field:
    return alpha * _inside(-scene.depth)


def _blots(rng: np.random.Generator, scene: Scene, radius: float, count: int) -> Field:
    """A signed distance, roughly, of ragged blots on the parts."""
    x, y = _grid(scene.size)
    spots = [_spot(rng, scene, 0.01) for _ in range(count)]
    round_blots = np.min([_slot(x - left, y - top, 0.0, radius) for left, top in spots], axis=0)
    return round_blots + radius * np.clip(0.4 * _clouds(rng, scene.size, 20), -0.7, 0.7)


def _rust(rng: np.random.Generator, scene: Scene) -> Colour:
    """Blotches of dark, orange and grey corrosion, lit like the part."""
    warmth = np.clip(0.4 + 0.4 * _clouds(rng, scene.size, 13), 0, 1)
    crust = np.clip(0.7 * _clouds(rng, scene.size, 14) - 0.2, 0, 0.85)
    colour = RUST_DARK + warmth * (RUST_BRIGHT - RUST_DARK)
    _lay(colour, crust, RUST_GREY)
    return colour * (scene.light * (1 + 0.12 * _clouds(rng, scene.size, scene.size // 2, 1)))


def rust_all_over(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, Colour]:
    """No paint left."""
    return _on_part(scene, np.full_like(scene.depth, 0.7 + 0.3 * severity)), _rust(rng, scene)


def rust_beyond_line(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, Colour]:
    """Rust on one side of a straight line through the part."""
    x, y = _grid(scene.size)
    u, _ = _turned(x, y, _spot(rng, scene, 0.06), rng.uniform(0, 2 * np.pi))
    return _on_part(scene, (0.6 + 0.4 * severity) * _inside(u, 0.01)), _rust(rng, scene)


def rust_blots(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, Colour]:
    """A few ragged spots of rust."""
    radius = 0.016 + 0.022 * severity
    blots = _blots(rng, scene, radius, int(rng.integers(1, 4)))
    return _on_part(scene, (0.6 + 0.4 * severity) * _inside(blots, 0.01)), _rust(rng, scene)


def scratches(
    rng: np.random.Generator, scene: Scene, severity: float, *, strokes: int, spread: float
) -> tuple[Field, Colour]:
    """Up to `strokes` curved scratches of one direction around a spot, through the paint to the metal."""
    zoom = 4  # PIL draws without anti-aliasing: draw large, then average
    unit = zoom * scene.size
    drawing = Image.new("L", (unit, unit))
    pen = ImageDraw.Draw(drawing)
    spot, direction = np.array(_spot(rng, scene, 0.02)), rng.uniform(0, np.pi)
    t = np.linspace(-1, 1, 13)[:, None]  # (K, 1) along a stroke
    for stroke in range(1 + round(severity * (strokes - 1))):
        angle = direction + rng.normal(0, 0.12)
        along = np.array((np.cos(angle), np.sin(angle)))
        across = np.array((-along[1], along[0]))
        centre = spot + (rng.normal(0, spread, 2) if stroke else 0)  # the first is on the part for certain
        length, bend = rng.uniform(0.035, 0.1), rng.normal(0, 0.012)
        path = unit * (centre + length * t * along + bend * (t**2) * across)  # (K, 2)
        width = unit * rng.uniform(0.003, 0.0075) * (0.5 + 0.5 * severity)
        for i, taper in enumerate(1 - 0.75 * np.abs(t[1:, 0] - 1 / 12)):
            pen.line([tuple(path[i]), tuple(path[i + 1])], fill=255, width=max(zoom, round(width * taper)))
    alpha = np.asarray(drawing.reduce(zoom), np.float32) / 255
    shade = rng.uniform(0.4, 0.75) if scene.paint.mean() > 0.5 else rng.uniform(0.7, 1.25)
    metal = STEEL * shade * scene.light
    return _on_part(scene, (0.5 + 0.45 * severity) * alpha), metal


def drilled_hole(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, Colour]:
    """A hole that should not be there, with a burr of bare metal."""
    x, y = _grid(scene.size)
    radius = max(0.008 + 0.016 * severity, 1.5 / scene.size)
    left, top = _spot(rng, scene, radius + 0.01)
    hole = _slot(x - left, y - top, 0.0, radius)
    colour = 0.6 * scene.backdrop * scene.light
    _lay(colour, _inside(-hole), STEEL * (1 + 0.4 * _relief(-hole, 0.01, -2.3)))
    return _on_part(scene, _inside(hole - 0.004)), colour


def missing_hole(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, Colour]:
    """A hole that was not punched through: the paint goes on over it and over the punch's dent."""
    hole = scene.holes[rng.integers(len(scene.holes))]
    dent = 1 - (0.2 + 0.6 * severity) * _relief(hole, 0.012, -2.2)
    return _inside(hole - 0.012, 0.004), scene.paint * (scene.light * dent)


def bare_metal(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, Colour]:
    """A spot without paint."""
    blot = _blots(rng, scene, 0.018 + 0.027 * severity, 1)
    brushed = 1 + 0.08 * _clouds(rng, scene.size, scene.size // 2, 1)
    rim = 0.8 - 0.25 * _inside(-blot, 0.01)
    metal = STEEL * (scene.light * brushed * rim)
    return _on_part(scene, (0.55 + 0.45 * severity) * _inside(blot)), metal


def paint_run(rng: np.random.Generator, scene: Scene, severity: float) -> tuple[Field, Colour]:
    """Too much paint: a drop that ran before it dried, or a round bump."""
    x, y = _grid(scene.size)
    radius = 0.013 + 0.009 * severity
    u, v = _turned(x, y, _spot(rng, scene, 0.02), rng.uniform(0, 2 * np.pi))
    tapered = v * (1.4 - 10 * u)  # wider at one end, where the drop came to rest
    drop = _slot(u, tapered if rng.random() < 0.6 else v, 0.0, radius)
    swell = (0.35 + 0.45 * severity) * _relief(drop, radius, -2.2)
    wet = 0.25 * np.clip(swell, 0, 1)  # thick paint shines, black paint too
    return _on_part(scene, _inside(drop)), scene.paint * (scene.light * (1 + swell)) + wet


# --- the registry ------------------------------------------------------------------------------------------

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

FEW = partial(scratches, strokes=5, spread=0.015)
MANY = partial(scratches, strokes=70, spread=0.05)

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


# --- pictures and files ------------------------------------------------------------------------------------


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
