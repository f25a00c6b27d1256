"""How light a colour looks, for the tests of what is drawn with the heat colours."""

import numpy as np


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB in [0, 255], (..., 3) -> (...)."""
    linear = np.where(rgb <= 0.04045 * 255, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > (6 / 29) ** 3, 116 * np.cbrt(luminance) - 16, (29 / 3) ** 3 * luminance)
