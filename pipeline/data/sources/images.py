"""People's own image files: reading their size, and bringing them to one size and number of channels."""

from __future__ import annotations

import io
import stat
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.data import sizes

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, a broken or an unreasonably large one."""

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
# An image of more pixels is taken for a photograph where its file is large as well: a bomb has a thousand a byte.
_PIXELS, _PIXELS_PER_BYTE = 50_000_000, 100
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


def common_shape(looks: Counter[Look], image_size: int | None) -> tuple[tuple[int, int, int], str]:
    """(C, H, W) that a set is brought to, and the sizes that it is brought from in words, "" where none changes.

    The size is that of ``sizes.choose``; grey if all images are.
    """
    found: Counter[sizes.Size] = Counter()
    for seen, count in looks.items():
        found[seen.size] += count
    height, width = sizes.choose(found, image_size)
    resized_from = "" if set(found) == {(width, height)} else sizes.words(found)
    return (1 if all(seen.grey for seen in looks) else 3, height, width), resized_from


def why(cause: BaseException) -> str:
    """What one of ``UNREADABLE`` says about a file, without the file's name and Pillow's inner life."""
    if isinstance(cause, UnidentifiedImageError):
        return "in no format of images that Pillow knows"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


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
    if isinstance(file, bytes):
        size, opened = len(file), _opened(io.BytesIO(file))
    else:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise OSError("no regular file")  # a pipe would be waited for
        size, opened = found.st_size, _opened(file)
    pixels = opened.width * opened.height
    if pixels > max(_PIXELS, _PIXELS_PER_BYTE * size):
        opened.close()
        raise ValueError(f"{opened.width}×{opened.height} pixels in {size:,} bytes are not plausible")
    return opened


def _opened(file: Path | io.BytesIO) -> Image.Image:
    """As Pillow opens it, which refuses what is twice as large as what it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of large photographs, which are read
        return Image.open(file)
