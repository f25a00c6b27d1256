"""Images as overlapping square tiles, and the maps of tiles as one map without seams."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Tiling:
    """The tiles of images of one size, row by row; the last of a row or column ends at the border.

    Args:
        size: (H, W) of the images.
        tile: side of a tile.
        stride: pixels from one tile to the next, at most `tile`.

    Raises:
        ValueError: the tile does not fit into the image.
    """

    def __init__(self, size: tuple[int, int], tile: int, stride: int) -> None:
        if tile > min(size):
            raise ValueError(f"tiles of {tile} pixels do not fit into images of {size[0]} x {size[1]}")
        self.size = size
        self.tile = tile
        self.corners = [(y, x) for y in _starts(size[0], tile, stride) for x in _starts(size[1], tile, stride)]

    def __len__(self) -> int:
        """Tiles per image."""
        return len(self.corners)

    def cut(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B * len(self), C, tile, tile), the tiles of an image together."""
        return torch.stack([self.tile_of(images, index) for index in range(len(self))], dim=1).flatten(0, 1)

    def tile_of(self, images: Tensor, index: int) -> Tensor:
        """Tile number `index` of images, (..., H, W) -> a view of (..., tile, tile)."""
        y, x = self.corners[index]
        return images[..., y : y + self.tile, x : x + self.tile]

    def blend(self, maps: Tensor) -> Tensor:
        """(B * len(self), tile, tile) maps -> (B, H, W), each pixel the weighted mean of the tiles that cover it.

        A tile's weight falls from its middle to its border, where the network has seen half of what is around, so
        that there is no step where a tile begins.
        """
        ramp = torch.sin(torch.pi * (torch.arange(self.tile, device=maps.device) + 0.5) / self.tile).square()
        window = ramp[:, None] * ramp  # (tile, tile), above 0
        maps = maps.unflatten(0, (-1, len(self)))  # (B, T, tile, tile)
        height, width = self.size
        total, weight = maps.new_zeros(self.size), maps.new_zeros(self.size)
        for index, (y, x) in enumerate(self.corners):
            around = x, width - x - self.tile, y, height - y - self.tile
            total = total + F.pad(window * maps[:, index], around)  # not in place, so that it can be exported
            weight = weight + F.pad(window, around)
        return total / weight


def _starts(length: int, tile: int, stride: int) -> list[int]:
    starts = list(range(0, length - tile + 1, stride))
    return starts if starts[-1] == length - tile else [*starts, length - tile]
