"""What RandAugment makes of a pixel of 0 … 255, as tables of 256 entries, in Pillow's arithmetic.

Most are computed once: one each for Posterize and Solarize, and for blends one for every base and sign. Those of
AutoContrast and Equalize belong to one channel of one image. Each of their entries is
``level·scale + offset + darker·weight``, where scale, offset and weight are looked up, too.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.magnitudes import dropped_bits, level

LEVELS: Final = 256

# Tables stand one behind the other. First come two blocks of blends: towards base 0 … 255, with positive and then with
# negative sign. Tables of single channels follow after the last one.
POSTERIZED: Final = 2 * LEVELS
SOLARIZED: Final = POSTERIZED + 1
NUM_FIXED: Final = POSTERIZED + 2


def fixed_tables(magnitude: int) -> Tensor:
    """The tables that are computed once: (NUM_FIXED·256,) uint8."""
    levels = torch.arange(LEVELS, dtype=torch.uint8)
    enhance = level(0.0, 0.9, magnitude)
    solarized = levels >= math.ceil(level(255.0, 0.0, magnitude))
    return torch.cat(
        (
            _blends(1.0 + enhance),
            _blends(1.0 - enhance),
            levels & (0xFF << dropped_bits(magnitude) & 0xFF),
            torch.where(solarized, 255 - levels, levels),
        )
    )


def _blends(factor: float) -> Tensor:
    """Pillow's ``Image.blend(base, image, factor)``, base by base: (256·256,) uint8.

    In float32, each operation rounded by itself, limited to 0 … 255, then cut off. Pillow takes the factor as a C
    float.
    """
    levels = torch.arange(LEVELS, dtype=torch.float32)
    base = levels[:, None]
    blended = (levels - base).mul_(torch.tensor(factor, dtype=torch.float32)).add_(base)
    return blended.clamp_(0.0, 255.0).to(torch.uint8).flatten()


def channel_tables(num_pixels: int) -> NDArray[np.float64]:
    """Scale, offset and weight of a channel's table: (256·256 + num_pixels + 1, 3).

    Row low + 256·high is AutoContrast's, for a channel whose pixels are low … high. Row 256·256 + n is Equalize's, for
    one of whose ``num_pixels`` pixels n are darker than its brightest.
    """
    return np.concatenate((_stretching(), _equalizing(num_pixels)))


def _stretching() -> NDArray[np.float64]:
    """AutoContrast's level·scale + offset, in float64 and cut off as Pillow does.

    A bright pixel may come out as 254.99…, that is 254. A channel of one level stays as it is.
    """
    high, low = np.mgrid[:LEVELS, :LEVELS].reshape(2, -1)
    stretched = high > low
    scale = np.where(stretched, 255.0 / np.where(stretched, high - low, 1), 1.0)
    return np.stack((scale, np.where(stretched, -low * scale, 0.0), np.zeros_like(scale)), axis=1)


def _equalizing(num_pixels: int) -> NDArray[np.float64]:
    """Equalize's (step//2 + darker)//step: darker pixels than the level's, in steps of a 255th of those that count.

    In float64: offset + darker·weight, with another half of 1/step in the offset. So it stays away from every whole
    number by that half at least, and rounding does not matter. With step 0 the channel stays as it is.
    """
    step = np.arange(num_pixels + 1) // 255
    changed = step > 0
    weight = np.where(changed, 1.0 / np.maximum(step, 1), 0.0)
    offset = np.where(changed, (step // 2 + 0.5) * weight, 0.0)
    return np.stack((np.where(changed, 0.0, 1.0), offset, weight), axis=1)


def darker_by_counting(pixels: Tensor, levels: Tensor) -> Tensor:
    """How many pixels of each channel are darker than each level: (n, C, HW) uint8 → (n, C, 256) int64."""
    histogram = torch.zeros(*pixels.shape[:2], LEVELS, dtype=torch.int64, device=pixels.device)
    histogram.scatter_add_(2, pixels.long(), torch.ones((), dtype=torch.int64, device=pixels.device).expand_as(pixels))
    return histogram.cumsum(dim=2).sub_(histogram)


def darker_by_sorting(pixels: Tensor, levels: Tensor) -> Tensor:
    """The same as ``darker_by_counting``, for GPUs.

    One that is asked for the same bits every time adds up a histogram by sorting, too, but in many more kernels. On a
    CPU sorting takes some 20 times as long as counting.
    """
    return torch.searchsorted(pixels.sort(dim=2).values, levels.expand(*pixels.shape[:2], LEVELS).contiguous())
