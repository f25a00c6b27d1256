"""Faults: an alpha and a colour laid over a finished part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from patchcore.synthetic.fields import (
    STEEL,
    Colour,
    Field,
    _clouds,
    _grid,
    _inside,
    _lay,
    _relief,
    _rgb,
    _slot,
    _turned,
)
from patchcore.synthetic.parts import Scene

Fault = Callable[[np.random.Generator, Scene, float], tuple[Field, Colour]]


"""(generator, scene, severity in [0, 1]) -> alpha (S, S) and colour (3, S, S) to lay over the scene."""


RUST_DARK, RUST_BRIGHT, RUST_GREY = _rgb(62, 46, 26), _rgb(134, 88, 30), _rgb(112, 114, 94)


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


FEW = partial(scratches, strokes=5, spread=0.015)


MANY = partial(scratches, strokes=70, spread=0.05)
