"""The pictures of verdicts, and where they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from patchcore.datasets.layout import IMAGE_SUFFIXES
from patchcore.inspection.images import absolute
from patchcore.methods.detector import Detector
from patchcore.pictures import png
from patchcore.pictures.explanation import Match, Place, cut_surroundings, draw_explanation
from patchcore.pictures.heat import HeatScale
from patchcore.pictures.verdict import draw_verdict
from patchcore.system.files import atomic_write
from patchcore.types import Evidence, GoodPatch, Inspected, Result

_LONGEST_NAME = 255  # bytes, of a file in most file systems


class Overlays:
    """Draws the verdict on every image into a folder, which mirrors the folders of the images.

    Args:
        folder: of the pictures.
        given: the files and folders that the images come from; where they lie apart, the folders that they share are
            left out.
        detector: its calibration sets the colours, and what is outlined.
        explain: whether to show beneath what the most anomalous places were compared with.

    Raises:
        PatchCoreError: the detector cannot explain anything.
    """

    def __init__(self, folder: Path, given: Sequence[Path], detector: Detector, *, explain: bool = False) -> None:
        self._folder = folder
        places = [path if path.is_dir() else path.parent for path in given]
        self._base = os.path.commonpath([absolute(place) for place in places])
        self._calibration, self._geometry = detector.calibration, detector.geometry
        self._explain = detector.explainer() if explain else None

    def path(self, image: Path) -> Path:
        """Where the picture of an image goes; two images never have the same."""
        relative = Path(os.path.relpath(absolute(image), self._base))
        return self._folder / relative.with_name(picture_name(relative.name))

    def save(self, image: Inspected) -> Path | None:
        """Write the picture of an image; returns where, None for one that is broken.

        Raises:
            PatchCoreError: the system refused.
        """
        if image.result is None:
            return None
        target = self.path(image.path)
        with atomic_write(target) as aside:
            aside.write_bytes(png.encode(self.draw(image)))
        return target

    def draw(self, image: Inspected) -> Image.Image:
        """The sheet of an image that has a result."""
        result, pixels = image.result, image.picture
        if result is None or pixels is None or image.size is None:
            raise ValueError(f"{image.path}: there is no result to draw")
        if self._calibration is None:
            scale, marked = HeatScale.of(result.map[None]), np.zeros(result.map.shape, bool)
        else:
            low, high = self._calibration.heat_ends
            scale, marked = HeatScale(low=low, high=high), result.map > self._calibration.pixel_threshold
        picture = Image.fromarray(pixels)
        sheet = draw_verdict(
            picture,
            result.map,
            scale=scale,
            regions=marked,
            accepted=None if result.verdict is None else result.verdict == "accept",
            heading=os.path.relpath(absolute(image.path), self._base),
            caption=describe(result),
        )
        if self._explain is None:
            return sheet
        evidence = self._explain(torch.from_numpy(pixels).permute(2, 0, 1))
        return draw_explanation(sheet, [self._place(one, picture, image.size) for one in evidence])

    def _place(self, evidence: Evidence, picture: Image.Image, size: tuple[int, int]) -> Place:
        left, top, right, bottom = self._geometry.box_in_image(evidence.box, size)
        where = f"at ({(left + right) // 2}, {(top + bottom) // 2})"
        crop, box = cut_surroundings(picture, evidence.box, _surroundings(evidence.box))
        nearest = tuple(map(_match, evidence.nearest))
        return Place(crop=crop, box=box, label=f"score {evidence.score:.5g}\n{where}", nearest=nearest)


def _match(patch: GoodPatch) -> Match:
    crop, box = cut_surroundings(Image.fromarray(patch.picture), patch.box, _surroundings(patch.box))
    turned = [f"turned by {90 * (patch.view % 4)}°"] if patch.view % 4 else []
    mirrored = ["mirrored"] if patch.view >= 4 else []
    shown = f"\n{', '.join(turned + mirrored)}" if patch.view else ""
    name = "/".join(patch.photo.split("/")[-2:])
    return Match(crop=crop, box=box, label=f"{name}\ndistance {patch.distance:.5g}{shown}")


def _surroundings(box: tuple[int, int, int, int]) -> int:
    """Side of the square that is shown around a box."""
    return 3 * max(box[2] - box[0], box[3] - box[1])


def describe(result: Result) -> str:
    """Score, threshold and p-value of an image, as far as there are any, in a line."""
    parts = [f"score {result.score:.5g}"]
    if result.threshold is not None:
        parts.append(f"threshold {result.threshold:.5g}")
    if result.p_value is not None:
        parts.append(f"p {result.p_value:.2g}")
    return ", ".join(parts)


def picture_name(name: str) -> str:
    """The name of the picture of an image: 000.png stays, 000.jpg becomes 000.jpg.png, so that both have their own.

    A name that is too long for a file, or that of no image, is cut off, and a hash of it added.
    """
    stem = name.removesuffix(".png")
    keeps = stem != name and not stem.lower().endswith(IMAGE_SUFFIXES)
    picture = name if keeps else f"{name}.png"
    content = os.fsencode(name)
    if name.lower().endswith(IMAGE_SUFFIXES) and len(os.fsencode(picture)) <= _LONGEST_NAME:
        return picture
    return f"{content[:200].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:16]}.png"
