"""What a score rests on: the most anomalous places of an image, and the patches of the bank that come nearest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchcore.datasets.loader import turn
from patchcore.scoring import image_scores, patch_scores
from patchcore.system.timing import StageTimer
from patchcore.types import Evidence, GoodPatch, PatchCoreError

if TYPE_CHECKING:
    from patchcore.methods.patchcore.detector import Member, PatchCore

PLACES = 3  # of an image at most
NEAREST = 3  # good patches of a place at most


def explainer(detector: PatchCore) -> Callable[[Tensor], tuple[Evidence, ...]]:
    """What explains images, see `Detector.explainer`.

    Of an ensemble the member is shown whose score stands farthest above the highest of its calibration scores, as a
    multiple of it; without a calibration the first.

    Raises:
        PatchCoreError: the model does not know which photos its patches come from, or has no pictures of them.
    """
    album, members = detector.album, detector.members
    images = None if detector.training is None else detector.training.images
    if not len(album) or images is None or any(member.origins is None for member in members):
        raise PatchCoreError(
            "the model keeps no pictures of the images that it was trained on, so it cannot show what it compares with:"
            " train it again with this version"
        )
    views, rest = divmod(images, len(album.photos))
    for member in members:
        if rest or member.origins is None or int(member.origins.max()) >= images * math.prod(member.grid):
            raise PatchCoreError("the model is damaged: its memory bank does not come from its training images")

    @torch.inference_mode()
    def explain(pixels: Tensor) -> tuple[Evidence, ...]:
        timer = StageTimer(detector.workspace.device)
        found = []
        for member in members:
            patches = member.embed(pixels[None], timer)[0]  # (h, w, D)
            distances = member.bank.distances(patches.flatten(0, 1), detector.config.num_nn)
            found.append((patches, patch_scores(distances).reshape(patches.shape[:2])))
        chosen = 0
        if detector.calibration is not None:
            scores = torch.stack([image_scores(grid[None])[0].double().cpu() for _, grid in found]).numpy()
            chosen = int(np.argmax(scores / np.maximum(detector.calibration.scores.max(axis=1), 1e-30)))
        patches, grid = found[chosen]
        return tuple(
            Evidence(
                box=_box(row, column, member=members[chosen], detector=detector),
                score=float(grid[row, column]),
                nearest=_nearest(patches[row, column], members[chosen], detector, views),
            )
            for row, column in highest_places(grid, detector.config.patchsize)
        )

    return explain


def highest_places(grid: Tensor, apart: int, count: int = PLACES) -> list[tuple[int, int]]:
    """Rows and columns of the highest local maxima of an (h, w) grid of patch scores, the highest first.

    Args:
        apart: rows or columns that lie at least between two of them; at least 2, so that they are no neighbours.
    """
    apart = max(2, apart)
    peaks = grid == F.max_pool2d(grid[None], 3, stride=1, padding=1)[0]
    places: list[tuple[int, int]] = []
    for number in grid.where(peaks, -torch.inf).flatten().argsort(descending=True, stable=True).tolist():
        row, column = divmod(number, grid.shape[1])
        if len(places) == count or not peaks[row, column]:
            break
        if all(max(abs(row - y), abs(column - x)) >= apart for y, x in places):
            places.append((row, column))
    return places


def _box(row: int, column: int, *, member: Member, detector: PatchCore) -> tuple[int, int, int, int]:
    """The neighbourhood that a patch describes, in pixels of the network."""
    size, reach = detector.geometry.imagesize, (detector.config.patchsize - 1) // 2
    (top, bottom), (left, right) = (
        (max(0, at - reach) * size // cells, -(-min(cells, at + reach + 1) * size // cells))
        for at, cells in zip((row, column), member.grid, strict=True)
    )
    return left, top, right, bottom


def _nearest(patch: Tensor, member: Member, detector: PatchCore, views: int) -> tuple[GoodPatch, ...]:
    """The rows of the bank nearest to a patch, of different photos as far as there are any, the nearest first."""
    if member.origins is None:
        raise ValueError("the bank does not say which images its rows come from")
    distances = (member.bank.features - patch.cpu()).square().sum(dim=1)  # (K,)
    per_view = math.prod(member.grid)
    photos = member.origins // (per_view * views)
    order = distances.argsort(stable=True)
    _, first = np.unique(photos[order].numpy(), return_index=True)  # of every photo its nearest row
    rows = order[np.sort(first)[:NEAREST]].tolist()
    rows += [row for row in order[: 2 * NEAREST].tolist() if row not in rows][: NEAREST - len(rows)]
    found = []
    for row in sorted(rows, key=lambda row: float(distances[row])):
        image, place = divmod(int(member.origins[row]), per_view)
        photo, view = divmod(image, views)
        picture = torch.from_numpy(detector.album.picture(photo).copy()).permute(2, 0, 1)  # (3, H, W)
        found.append(
            GoodPatch(
                photo=detector.album.photos[photo].name,
                view=view,
                picture=turn(picture, view).permute(1, 2, 0).contiguous().numpy(),
                box=_box(*divmod(place, member.grid[1]), member=member, detector=detector),
                distance=float(distances[row]),
            )
        )
    return tuple(found)
