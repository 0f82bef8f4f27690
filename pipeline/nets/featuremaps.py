"""Layers whose activations are feature maps (N, C, H, W): one feature vector for each pixel."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nets.base import Layer, NetConfig

Grid = tuple[int, int]


def convolved(grid: Grid, *, kernel: int = 3, stride: int = 1, padding: int = 1) -> Grid:
    """Rows and columns that a convolution makes of an image with so many."""
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in grid)
    return rows, columns


def he_normal(module: nn.Module) -> None:
    """Draws the weights of all convolutions within a module anew, from N(0, 2 / fan-in) (He et al. 2016)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")


class FeatureMapLayer(Layer):
    """A layer whose activations are ``features`` maps of ``grid`` pixels."""

    def __init__(self, features: int, grid: Grid) -> None:
        super().__init__()
        self.features = features
        self.grid: Grid = grid

    def tokens(self, activations: Tensor) -> Tensor:
        return activations.flatten(2).transpose(1, 2)

    def pool(self, activations: Tensor) -> Tensor:
        return activations.mean(dim=(2, 3))


class ConvLayer(FeatureMapLayer):
    """(N, inputs, H, W) → (N, features, rows, columns): convolution, batch norm, ReLU.

    Args:
        grid: rows and columns of the layer's input.
    """

    def __init__(
        self, inputs: int, features: int, grid: Grid, *, kernel: int = 3, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__(features, convolved(grid, kernel=kernel, stride=stride, padding=padding))
        # Without a bias, which batch norm would take away again.
        self.conv = nn.Conv2d(inputs, features, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        # In place: batch norm keeps its input for the backward pass, and nobody its output. So with blocks, too.
        return F.relu(self.norm(self.conv(x)), inplace=True)


@dataclass(frozen=True, kw_only=True)
class BlockNet(NetConfig):
    """A net all of whose layers are blocks of one kind, from feature maps to feature maps."""

    @abstractmethod
    def block(self, inputs: int, features: int, grid: Grid, *, stride: int) -> FeatureMapLayer:
        """A block as this net's own, of any size: (N, inputs, H, W) → (N, features, rows, columns).

        Args:
            grid: rows and columns of the block's input.
        """
