"""Overlays: a figure of three panels by a plotting library, against array operations and a font."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.inputs import Inputs
from benchmarks.measure import Report, Work, at_least, compare
from benchmarks.metrics import drawn_maps
from patchcore.pictures import png
from patchcore.pictures.heat import HeatScale
from patchcore.pictures.overlay import draw_overlay

COUNT, QUICK_COUNT = 24, 2


def by_matplotlib(pictures: NDArray, masks: NDArray, maps: NDArray, scale: HeatScale) -> list[bytes]:
    """Draw image, mask and heat map side by side under a title, as PNG; a figure per image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = []
    for index, (picture, mask, heat) in enumerate(zip(pictures, masks, maps, strict=True)):
        figure, axes = pyplot.subplots(1, 3, figsize=(9, 3.5))
        axes[0].imshow(picture)
        axes[1].imshow(mask, cmap="gray")
        axes[2].imshow(picture)
        axes[2].imshow(heat, cmap="inferno", alpha=0.6, vmin=scale.low, vmax=scale.high)
        for axis, caption in zip(axes, ("image", "ground truth", "heat map"), strict=True):
            axis.set_title(caption)
            axis.axis("off")
        figure.suptitle(f"image {index}")
        file = io.BytesIO()
        figure.savefig(file, format="png")
        pyplot.close(figure)
        files.append(file.getvalue())
    return files


def ours(pictures: NDArray, masks: NDArray, maps: NDArray, scale: HeatScale) -> list[bytes]:
    """Draw the same with the package, in one thread; a run draws on all cores."""
    files = []
    for index, (picture, mask, heat) in enumerate(zip(pictures, masks, maps, strict=True)):
        sheet = draw_overlay(Image.fromarray(picture), mask, heat, scale=scale, heading=f"image {index}")
        files.append(png.encode(sheet))
    return files


def run(inputs: Inputs) -> Report:
    """Compare on images of the inputs and drawn maps."""
    settings = inputs.settings
    count = QUICK_COUNT if settings.quick else COUNT
    pictures = inputs.images(count).permute(0, 2, 3, 1).contiguous().numpy()
    maps, masks, _ = drawn_maps(count, 224, 28)
    scale = HeatScale.of(maps)
    sheet = np.asarray(Image.open(io.BytesIO(ours(pictures[:1], masks[:1], maps[:1], scale)[0])))
    row = compare(
        "overlays",
        f"{count} images of 224 x 224, as PNG",
        reference=lambda: by_matplotlib(pictures, masks, maps, scale),
        ours=lambda: ours(pictures, masks, maps, scale),
        difference=lambda a, b: "-",
        device=torch.device("cpu"),
        repeats=settings.repeats,
        # Several bytes are looked up or blended for every pixel of the sheet, and every one is compressed.
        work=Work(operations=0, nbytes=pictures.nbytes + masks.nbytes + maps.nbytes + count * sheet.nbytes),
    )
    targets = [] if settings.quick else [at_least("overlays, over a plotting library", 15, row.ratio)]
    return Report(comparisons=[row], targets=targets)
