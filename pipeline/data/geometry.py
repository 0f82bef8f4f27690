"""Where RandAugment's geometric operations read each pixel from, as Pillow does with nearest interpolation."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.data.magnitudes import level

GEOMETRIC: Final = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def sources(height: int, width: int, magnitude: int) -> NDArray[np.int64]:
    """For each geometric operation and sign, the position y·W + x that each output pixel is read from; −1 is outside.

    (10, H·W): row 2·i for GEOMETRIC[i] with positive sign, row 2·i + 1 with negative sign.
    """
    shear = level(0.0, 0.3, magnitude)
    # Cut off to whole pixels, towards zero.
    right = int(level(0.0, 150.0 / 331.0 * width, magnitude))
    down = int(level(0.0, 150.0 / 331.0 * height, magnitude))
    degrees = level(0.0, 30.0, magnitude)
    rows = []
    for sign in (1, -1):
        matrices = (
            (1.0, sign * shear, 0.0, 0.0, 1.0, 0.0),
            (1.0, 0.0, 0.0, sign * shear, 1.0, 0.0),
            (1.0, 0.0, -sign * right, 0.0, 1.0, 0.0),
            (1.0, 0.0, 0.0, 0.0, 1.0, -sign * down),
            _rotation(height, width, sign * degrees),
        )
        rows.append([_nearest(height, width, matrix) for matrix in matrices])
    return np.stack([row for pair in zip(*rows, strict=True) for row in pair])


def _rotation(height: int, width: int, degrees: float) -> tuple[float, ...]:
    """Output to input coordinates for a counter-clockwise rotation about the centre of the image."""
    angle = -math.radians(degrees)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)


def _nearest(height: int, width: int, matrix: tuple[float, ...]) -> NDArray[np.int64]:
    """Input position y·W + x nearest to each output pixel's, −1 outside: (H·W,).

    ``matrix`` (a, b, c, d, e, f) takes an output point (x, y) to the input point (ax + by + c, dx + ey + f). Pixel
    centres lie on halves. 16.16 fixed point, Pillow's own, for its rounding.
    """
    a, b, c, d, e, f = matrix

    def fixed(value: float) -> int:
        return math.floor(value * 65536.0 + 0.5)

    y, x = np.mgrid[:height, :width].astype(np.int64)
    from_x = (fixed(c + a * 0.5 + b * 0.5) + x * fixed(a) + y * fixed(b)) >> 16
    from_y = (fixed(f + d * 0.5 + e * 0.5) + x * fixed(d) + y * fixed(e)) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return np.where(inside, from_y * width + from_x, -1).ravel()
