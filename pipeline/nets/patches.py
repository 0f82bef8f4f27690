"""Images as square patches: what Vision Transformer and MLP-Mixer make their tokens of."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.nets.base import Shape

Patch = int | Literal["auto"]

_PATCHES_PER_SIDE = 8  # CFF's 64 patches: 4x4 pixels at 32x32, 8x8 at 64x64


def resolve_patch(patch: Patch, shape: Shape) -> int:
    """Patch side in pixels; "auto" is an eighth of the image side, at least 2. Raises UserError where it fits not."""
    _, height, width = shape
    common = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
    if patch == "auto":
        return next((p for p in common if p >= max(2, math.sqrt(height * width) / _PATCHES_PER_SIDE)), common[-1])
    if patch not in common:
        raise UserError(
            f"--patch {patch} does not divide images of {height}×{width} pixels. Patches that do: {listed(common)}."
        )
    return patch


def patch_grid(patch: int, shape: Shape) -> tuple[int, int]:
    """Rows and columns of patches in an image."""
    return shape[1] // patch, shape[2] // patch


def cut(images: Tensor, patch: int) -> Tensor:
    """Images (N, channels, H, W) → their patches, row by row, as vectors (N, T, channels·patch²)."""
    return F.unfold(images, patch, stride=patch).transpose(1, 2)


def listed(values: list[int]) -> str:
    return ", ".join(str(value) for value in values)
