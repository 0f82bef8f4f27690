"""Images as square patches: what Vision Transformer and MLP-Mixer make their tokens of."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from pipeline.errors import UserError, shortened
from pipeline.nets.base import NetConfig, Shape

Patch = int | Literal["auto"]

MAX_TOKENS = 1024
"""Tokens of an image beyond which a run is told how slow it will be: attention costs their square."""

_PATCHES_PER_SIDE = 8  # CFF's 64 patches: 4x4 pixels at 32x32, 8x8 at 64x64
_MIN_TOKENS = 4


def wanted_patch(shape: Shape) -> float:
    """Patch side in pixels that "auto" looks for: an eighth of the image side, at least 2."""
    return max(2, math.sqrt(shape[1] * shape[2]) / _PATCHES_PER_SIDE)


def resolve_patch(patch: Patch, shape: Shape) -> int:
    """Patch side in pixels; "auto" is an eighth of the image side, at least 2. Raises UserError where it fits not."""
    _, height, width = shape
    common = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
    if patch == "auto":
        return next((p for p in common if p >= wanted_patch(shape)), common[-1])
    if patch not in common:
        raise UserError(
            f"`patch` {shortened(patch)} does not divide images of {height}×{width} pixels. Patches that do: "
            f"{listed(common)}."
        )
    return patch


def patch_grid(patch: int, shape: Shape) -> tuple[int, int]:
    """Rows and columns of patches in an image."""
    return shape[1] // patch, shape[2] // patch


def patch_of(net: NetConfig) -> Patch | None:
    """A net's patch side; None where it does not cut images into patches."""
    patch: Patch | None = getattr(net, "patch", None)
    return patch


def describe_patches(patch: int, shape: Shape) -> str:
    """ "patch 8, 64 tokens"."""
    tokens = math.prod(patch_grid(patch, shape))
    return f"patch {patch}, {tokens:,} token{'s' if tokens > 1 else ''}"


def patch_warning(asked: Patch, net: NetConfig, shape: Shape) -> str | None:
    """What is wrong with the number of tokens, in a sentence. ``asked`` is the patch before ``net`` was resolved."""
    patch = patch_of(net)
    assert isinstance(patch, int), "resolve() gives the patch size"
    tokens = math.prod(patch_grid(patch, shape))
    size = f"images of {shape[1]}×{shape[2]} pixels in patches of {patch}"
    if tokens > MAX_TOKENS or (asked == "auto" and patch == 1):
        return (
            f"{size} are {tokens:,} tokens each, and attention costs their square. `image_size` brings a folder's "
            "images to another size: 64 makes 64 tokens."
        )
    if asked == "auto" and tokens < _MIN_TOKENS:
        return (
            f"{size} are {tokens} token{'s' if tokens > 1 else ''} each, too few to attend to: no smaller patch "
            "divides them. Give an `image_size` that is a multiple of 8."
        )
    return None


def cut(images: Tensor, patch: int) -> Tensor:
    """Images (N, channels, H, W) → their patches, row by row, as vectors (N, T, channels·patch²).

    A copy in one kernel. ``F.unfold`` launches one for each image on a GPU. Patches lie in memory as it leaves them,
    pixel by pixel: products in bfloat16 have other bits with another layout.
    """
    rows = images.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))  # (N, channels, rows, patch, columns, patch)
    pixels: Tensor = rows.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(1, 3)  # (N, channels·patch², T)
    return pixels.transpose(1, 2)


def listed(values: list[int]) -> str:
    return ", ".join(str(value) for value in values)
