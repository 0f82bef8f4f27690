"""One size for images of many: what a folder of photographs is brought to before it is trained on."""

from __future__ import annotations

import statistics
from collections import Counter

from pipeline.errors import UserError, shortened
from pipeline.nets.patches import patch_grid, resolve_patch, wanted_patch

Size = tuple[int, int]
"""(width, height) in pixels, the order in which photographs are measured."""

LARGEST_SIDE = 64
"""Pixels a side that are chosen at most: 64 patches of 8×8. `image_size` goes beyond it."""

_LARGEST_ASKED = 4096
_SMALLEST_SIDE = 8
_COARSE_FROM = 32  # pixels: sides from here on are multiples of 8, below it of 4
_NAMED = 3  # sizes that ``words`` names


def check(image_size: int | None) -> None:
    """Refuses a side that no image has. Raises UserError."""
    if image_size is not None and not 1 <= image_size <= _LARGEST_ASKED:
        raise UserError(
            f"`image_size` {shortened(image_size)}: give the side in pixels, at least 1 and at most {_LARGEST_ASKED:,}."
        )


def choose(sizes: Counter[Size], image_size: int | None = None) -> tuple[int, int]:
    """(height, width) for a set whose images have these sizes.

    ``image_size`` makes a square of that side. Without it images that all have one size keep it, where it is at most
    ``LARGEST_SIDE`` a side and patches fit it. All others become squares about as large as their shorter sides, by the
    median, and at most ``LARGEST_SIDE``.
    """
    if image_size is not None:
        return image_size, image_size
    if len(sizes) == 1:
        ((width, height),) = sizes
        if max(width, height) <= LARGEST_SIDE and _patches_fit(height, width):
            return height, width
    side = _side_near(statistics.median(min(size) for size in sizes.elements()))
    return side, side


def words(sizes: Counter[Size]) -> str:
    """The sizes, the most common ones first: "1200×900 (57 images), 640×480 (3 images) and 12 other sizes"."""
    ordered = sorted(sizes, key=lambda size: (-sizes[size], size))
    named = [
        f"{width}×{height} ({sizes[width, height]:,} image{'s' if sizes[width, height] > 1 else ''})"
        for width, height in ordered[:_NAMED]
    ]
    rest = len(ordered) - len(named)
    return ", ".join(named) + (f" and {rest:,} other size{'s' if rest > 1 else ''}" if rest else "")


def _patches_fit(height: int, width: int) -> bool:
    """Whether the patch that "auto" finds is within a factor of two of what it looks for, and not the whole image."""
    shape = (1, height, width)
    patch, wanted = resolve_patch("auto", shape), wanted_patch(shape)
    return patch > 1 and wanted / 2 <= patch <= 2 * wanted and min(patch_grid(patch, shape)) > 1


def _side_near(length: float) -> int:
    """The side between the smallest and the largest one that is nearest to ``length`` and that patches divide."""
    unit = 8 if length >= _COARSE_FROM else 4
    return min(max(round(length / unit) * unit, _SMALLEST_SIDE), LARGEST_SIDE)
