"""The pictures of verdicts, and where they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from patchcore.calibration import Calibration
from patchcore.datasets.layout import IMAGE_SUFFIXES
from patchcore.inspection.images import absolute
from patchcore.pictures import png
from patchcore.pictures.heat import HeatScale
from patchcore.pictures.verdict import draw_verdict
from patchcore.system.files import atomic_write
from patchcore.types import Inspected, Result

_LONGEST_NAME = 255  # bytes, of a file in most file systems


class Overlays:
    """Draws the verdict on every image into a folder, which mirrors the folders of the images.

    Args:
        folder: of the pictures.
        given: the files and folders that the images come from; where they lie apart, the folders that they share are
            left out.
        calibration: of the detector; it sets the colours, and what is outlined.
    """

    def __init__(self, folder: Path, given: Sequence[Path], calibration: Calibration | None) -> None:
        self._folder = folder
        places = [path if path.is_dir() else path.parent for path in given]
        self._base = os.path.commonpath([absolute(place) for place in places])
        self._calibration = calibration

    def path(self, image: Path) -> Path:
        """Where the picture of an image goes; two images never have the same."""
        relative = Path(os.path.relpath(absolute(image), self._base))
        return self._folder / relative.with_name(picture_name(relative.name))

    def save(self, image: Inspected) -> Path | None:
        """Write the picture of an image; returns where, None for one that is broken.

        Raises:
            PatchCoreError: the system refused.
        """
        if image.result is None or image.picture is None:
            return None
        target = self.path(image.path)
        sheet = self.draw(image.path, image.result, Image.fromarray(image.picture))
        with atomic_write(target) as aside:
            aside.write_bytes(png.encode(sheet))
        return target

    def draw(self, path: Path, result: Result, picture: Image.Image) -> Image.Image:
        """The sheet of an image."""
        if self._calibration is None:
            scale, marked = HeatScale.of(result.map[None]), np.zeros(result.map.shape, bool)
        else:
            low, high = self._calibration.heat_ends
            scale, marked = HeatScale(low=low, high=high), result.map > self._calibration.pixel_threshold
        return draw_verdict(
            picture,
            result.map,
            scale=scale,
            regions=marked,
            accepted=None if result.verdict is None else result.verdict == "accept",
            heading=os.path.relpath(absolute(path), self._base),
            caption=describe(result),
        )


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
