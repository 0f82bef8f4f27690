"""The cascade of blocks of CaFo's authors: a convolution each, which is seen whole by what predicts from it.

Source: Zhao et al. 2023, and the authors' program for the sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError, shortened
from pipeline.nets.base import NETS, Layer, NetConfig, Shape
from pipeline.nets.featuremaps import FeatureMapLayer, Grid
from pipeline.nets.limits import check_depth, check_sizes


@NETS.register
@dataclass(frozen=True, kw_only=True)
class CascadeSettings(NetConfig):
    """Blocks of a 3×3 convolution, ReLU, 2×2 max pooling and batch norm; a readout sees every pixel of a block."""

    kind: ClassVar[str] = "cascade"
    channels: tuple[int, ...] = (32, 128, 512)
    """Channels of each block, which halves the image."""

    @property
    def num_layers(self) -> int:
        return len(self.channels)

    def resolve(self, shape: Shape) -> Self:
        given = " ".join(map(shortened, self.channels))
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"`channels` {given}: one number of at least 1 for each block, such as 32 128 512.")
        check_depth("channels", len(self.channels))
        check_sizes(*(("channels", channels) for channels in self.channels))
        _, height, width = shape
        if min(height, width) >> len(self.channels) < 1:
            raise UserError(
                f"`channels` {given}: {len(self.channels)} blocks halve the image so often, and images of "
                f"{height}×{width} pixels can be halved {min(height, width).bit_length() - 1} times. Give fewer blocks."
            )
        return self

    def build(self, index: int, shape: Shape) -> Layer:
        channels, height, width = shape
        inputs = self.channels[index - 1] if index else channels
        return CascadeBlock(inputs, self.channels[index], (height >> (index + 1), width >> (index + 1)))

    def describe(self) -> str:
        return f"cascade[{' '.join(str(channels) for channels in self.channels)}]"


class CascadeBlock(FeatureMapLayer):
    """(N, inputs, H, W) → (N, features, H/2, W/2): convolution, ReLU, max pooling, batch norm.

    Args:
        grid: rows and columns of the block's output.
    """

    def __init__(self, inputs: int, features: int, grid: Grid) -> None:
        super().__init__(features, grid)
        self.pixels = math.prod(grid)
        self.conv = nn.Conv2d(inputs, features, 3, padding=1)
        self.norm = nn.BatchNorm2d(features, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.norm(F.max_pool2d(F.relu(self.conv(x)), 2))
        return maps

    @property
    def readout_width(self) -> int:
        return self.features * self.pixels

    def readout_input(self, activations: Tensor) -> Tensor:
        return activations.flatten(1)
