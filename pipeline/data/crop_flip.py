"""Random crop with zero padding and horizontal flip of a batch, every sample with a place of its own, in one gather."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.randaugment import send

CROP_DRAWS: Final = 3
"""Uniform numbers that a sample needs: top, left, flip."""


class CropFlip:
    """Crops each image at a uniform position of itself with ``padding`` zero pixels around it, then mirrors half of
    them."""

    def __init__(self, *, padding: int, flip: bool, device: torch.device) -> None:
        self._padding, self._flip, self._device = padding, flip, device
        self._lines: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor, draws: NDArray[np.float64]) -> Tensor:
        """Images (N or V·N, C, H, W) uint8, draws (V·N, CROP_DRAWS) in [0, 1) → (V·N, C, H, W): V views of all images,
        one behind the other."""
        num_images, channels, height, width = images.shape
        top, left = (draws[:, :2].T * (2 * self._padding + 1)).astype(np.int64)
        mirrored = self._flip & (draws[:, 2] < 0.5)
        from_y, from_x = send(np.stack((top, 2 * left + mirrored), dtype=np.int32), self._device)
        rows, columns = self._lines_of(height, width)
        index = rows.index_select(0, from_y)[:, :, None] + columns.index_select(0, from_x)[:, None, :]  # (V·N, H, W)
        padded = F.pad(images, (self._padding,) * 4).flatten(2)
        shape = (-1, num_images, channels, height * width)
        index = index.view(-1, num_images, 1, height * width).expand(shape)
        return padded.expand(len(index), -1, -1, -1).gather(3, index).view(-1, channels, height, width)

    def _lines_of(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where in a padded channel the rows of a crop begin, for every top, and which columns it takes, for every left
        without and with the mirror: (2·padding + 1, H) and (2·(2·padding + 1), W) int64."""
        size = (height, width)
        if size not in self._lines:
            starts = torch.arange(2 * self._padding + 1)[:, None]
            columns = starts + torch.arange(width)
            both = torch.stack((columns, columns.flip(1)), dim=1).flatten(0, 1)
            rows = (starts + torch.arange(height)) * (width + 2 * self._padding)
            self._lines[size] = rows.to(self._device), both.to(self._device)
        return self._lines[size]
