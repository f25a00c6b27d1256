"""Images or their tiles -> feature maps, and maps of tiles -> maps of images."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from patchcore.features.encoder import Encoder
from patchcore.methods.fastflow.tiles import Tiling
from patchcore.system.timing import StageTimer

CHUNK = 32  # tiles that pass through the backbone at a time


class TiledEncoder:
    """An encoder, and how images are cut for it.

    Attributes:
        channels: C of every layer.
        per_image: encoder inputs of an image: its tiles, or itself.
    """

    def __init__(self, encoder: Encoder, imagesize: int, tiling: Tiling | None) -> None:
        self.encoder = encoder
        self.imagesize = imagesize
        self.channels = [channels for channels, _, _ in encoder.shapes]
        self.per_image = len(tiling) if tiling else 1
        self._tiling = tiling

    def cut(self, images: Tensor) -> Iterator[Tensor]:
        """(B, 3, H, W) uint8 images -> their inputs (b, 3, S, S), as many as the backbone can take at once."""
        return iter(self.inputs(images).split(max(CHUNK, len(images))))

    def inputs(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 images -> all their inputs, (B * per_image, 3, S, S)."""
        return self._tiling.cut(images) if self._tiling else images

    def input_of(self, image: Tensor, index: int) -> Tensor:
        """(3, H, W) uint8 image -> encoder input number `index` of it, (3, S, S)."""
        return self._tiling.tile_of(image, index) if self._tiling else image

    def maps(self, inputs: Tensor, timer: StageTimer, *, cached: bool = True) -> list[Tensor]:
        """Feature maps of encoder inputs, see `Encoder`."""
        return self.encoder(inputs, timer, cached=cached)

    def join(self, maps: Tensor) -> Tensor:
        """(B * per_image, S, S) maps of the inputs -> (B, H, W) maps of the images."""
        return self._tiling.blend(maps) if self._tiling else maps

    def nbytes(self, num_images: int) -> int:
        """What the feature maps of so many images take."""
        return num_images * self.per_image * self.encoder.nbytes_per_image
