"""Read image and mask files of any kind into one: 8-bit RGB, and masks of 0 and 255."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from patchcore.types import PatchCoreError

# Only these decoders may look at a file, whatever its name says: Pillow has others that start programs (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_LOSSY_FORMATS = ("JPEG", "MPO")

# Modes that Pillow converts to RGB without guessing a range (as it would for F) or a colour space (LAB).
_RGB_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")

# What Pillow's decoders raise on damaged files, beside its own error: they check little themselves.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def load_image(path: Path, min_side: int | None = None) -> Image.Image:
    """Read a PNG, JPEG, BMP or TIFF file as 8-bit RGB.

    Alpha is dropped, not blended. 16-bit grey is divided by 257, so that 65535 becomes 255, whatever range
    the camera used of it. Of several pages the first is read; EXIF orientation is not applied, as masks have
    none.

    Args:
        min_side: decode JPEG at a half, a quarter or an eighth of its size if both sides keep this many pixels,
            which saves most of the work; None decodes every pixel.

    Raises:
        PatchCoreError: the file is missing, damaged, too large or of a kind that cannot be read as RGB in one way only.
    """
    with _open(path) as image:
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        return to_rgb(image, path)


def load_mask(path: Path) -> Image.Image:
    """Read a mask as mode L, 255 on defects and 0 elsewhere: a pixel that is not zero in every colour is a defect.

    Alpha is ignored; of a palette the colours count, not the indices. JPEG, which surrounds every edge with
    values near zero, is cut at half its range instead.

    Raises:
        PatchCoreError: as `load_image`.
    """
    with _open(path) as image:
        single = image.mode in ("1", "L") or _is_16_bit(image)
        values = np.asarray(image if single else to_rgb(image, path))
        defect = values >= 128 if image.format in _LOSSY_FORMATS else values != 0
        if defect.ndim == 3:
            defect = defect.any(axis=2)  # (H, W, 3) -> (H, W)
        return Image.fromarray(defect.astype(np.uint8) * 255)


def read_image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from the file's header, without decoding."""
    with _open(path) as image:
        return image.size


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open an image file; an error of the decoder, in the body too, becomes one that names the file."""
    try:
        if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
            raise ValueError("it is no regular file")  # opening a pipe would wait for who writes into it
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except _DECODING_ERRORS as error:
        raise PatchCoreError(f"cannot read the image {path}: {_explain(path, error)}; replace or remove it") from error


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = path.stat().st_size == 0
        return "the file is empty" if empty else f"its content is none of {', '.join(_FORMATS)}"
    # The system's errors repeat the path in their text; Pillow's have no strerror.
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _is_16_bit(image: Image.Image) -> bool:
    # Mode I is 32-bit, but is also how Pillow before 11 reads a 16-bit PNG.
    return image.mode == "I" or image.mode.startswith("I;16")


def to_rgb(image: Image.Image, path: Path | str) -> Image.Image:
    """Convert an image to mode RGB as `load_image` says; `path` names it in errors."""
    if _is_16_bit(image):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            cure = "scale them to 16 or 8 bits"
            raise PatchCoreError(f"{path}: expected grey values in 0..65535, got {low}..{high}; {cure}")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode not in _RGB_CONVERTIBLE:
        kind = "32-bit float" if image.mode == "F" else "another kind"
        cure = "scale its values to 0..255 and save them as an 8-bit PNG"
        raise PatchCoreError(
            f"{path}: expected pixels of 8 or 16 bits, grey or RGB, got {kind} (mode {image.mode}); {cure}"
        )
    # Alpha goes anyway; left here, Pillow would warn that a palette's cannot be kept.
    image.info.pop("transparency", None)
    return image.convert("RGB")
