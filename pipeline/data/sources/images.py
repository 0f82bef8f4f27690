"""People's own image files: reading their size, and bringing them to one size and number of channels."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, a broken or an unreasonably large one."""

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # its values that swap width and height


@dataclass(frozen=True)
class Look:
    """What an image's header tells."""

    size: tuple[int, int]
    """(width, height) as seen."""
    grey: bool


def look(file: Path | bytes) -> Look:
    """Read an image's header.

    Raises:
        one of ``UNREADABLE``: it is not an image.
    """
    with _open(file) as picture:
        width, height = picture.size
        if picture.getexif().get(_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        return Look((width, height), picture.mode in _GREY_MODES)


def common_shape(looks: Counter[Look], image_size: int | None) -> tuple[int, int, int]:
    """(C, H, W) that a set is brought to: its most common size or a square of ``image_size``; grey if all images are.

    Of equally common sizes the smaller one is taken.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    for seen, count in looks.items():
        sizes[seen.size] += count
    width, height = min(sizes, key=lambda size: (-sizes[size], size))
    if image_size is not None:
        width = height = image_size
    return (1 if all(seen.grey for seen in looks) else 3, height, width)


def read(file: Path | bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image as (H, W, C) of ``shape`` (C, H, W).

    An image of another size is scaled (bicubic, keeping its proportions) until it covers H x W, then cut to its centre.

    Raises:
        one of ``UNREADABLE``: it cannot be read.
    """
    channels, height, width = shape
    with _open(file) as opened:
        picture: Image.Image = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):
            # Pillow's conversion of 16-bit grey clips at 255 instead of scaling.
            picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture, dtype=np.uint8).reshape(height, width, channels)


def _open(file: Path | bytes) -> Any:
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
