"""RandAugment's magnitudes: torchvision's 31 bins of each operation's scale."""

from __future__ import annotations

from typing import Final

import torch

NUM_BINS: Final = 31


def level(first: float, last: float, magnitude: int) -> float:
    """Bin ``magnitude`` of a scale from ``first`` to ``last``, in float32 as torchvision computes it."""
    return float(torch.linspace(first, last, NUM_BINS)[magnitude])


def dropped_bits(magnitude: int) -> int:
    """Low bits that Posterize sets to zero: 0 … 4."""
    return int((torch.tensor(magnitude) / ((NUM_BINS - 1) / 4)).round())
