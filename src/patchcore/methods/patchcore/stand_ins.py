"""What a greedy coreset would have kept without one of the images: patches that stand in for its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from patchcore.methods.patchcore.active_points import product_elements, squared_distances


@torch.inference_mode()
def stand_ins(points: Tensor, chosen: Tensor, per_image: int) -> list[Tensor]:
    """Choose for every image the patches of other images that take the place of its rows when it is left out.

    A greedy choice ends with every patch within some radius of the rows that it keeps. Without the rows of an image,
    patches of the others that only these covered lie beyond. The farthest of them is taken, and so on, as the greedy
    choice itself would have done, until all are within the radius again.

    Args:
        points: (N * per_image, D) float32, in which the coreset was chosen, the images in a row.
        chosen: (K,) int64, the points that it kept; of two images at least.
        per_image: points of an image.

    Returns:
        N tensors (R,) int64 on the CPU, points of other images; R may be 0.
    """
    chosen = chosen.to(points.device)
    owner, own, apart = _nearest_two(points, chosen, per_image)
    radius = own.max()
    images = torch.arange(len(points), device=points.device) // per_image
    beyond = ((apart > radius) & (owner != images)).nonzero()[:, 0]
    found = []
    for image in range(len(points) // per_image):
        left = beyond[owner[beyond] == image]
        found.append(left[_cover(points[left], apart[left], radius)].cpu())
    return found


def _nearest_two(points: Tensor, chosen: Tensor, per_image: int) -> tuple[Tensor, Tensor, Tensor]:
    """The image that every point's nearest row is of, the squared distance to it, and to the nearest of any other."""
    rows, rows_of = points[chosen], chosen // per_image
    norms = rows.square().sum(dim=1)
    found = []
    for part in points.split(max(1, product_elements(points.device) // len(rows))):
        distances = squared_distances(part, part.square().sum(dim=1), rows, norms)
        own, nearest = distances.min(dim=1)
        owner = rows_of[nearest]
        apart = distances.masked_fill_(owner[:, None] == rows_of, torch.inf).amin(dim=1)
        found.append((owner, own, apart))
    owner, own, apart = (torch.cat(parts) for parts in zip(*found, strict=True))
    return owner, own, apart


def _cover(points: Tensor, distances: Tensor, radius: Tensor) -> list[int]:
    """Greedy picks among (T, D) points at squared `distances` from what covers them, until none is beyond `radius`."""
    picks: list[int] = []
    while len(points) and distances.max() > radius:
        picks.append(int(distances.argmax()))
        distances = torch.minimum(distances, (points - points[picks[-1]]).square().sum(dim=1))
    return picks
