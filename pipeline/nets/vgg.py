"""VGG8b (Nøkland & Eidnes 2019), as Choi et al. 2024 train it: six convolutions and one fully connected layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import NETS, Dropout, Layer, NetConfig, Shape
from pipeline.nets.featuremaps import ConvLayer, Grid, convolved
from pipeline.nets.mlp import LinearLayer, MlpSettings

_CONVOLUTIONS = ((128, False), (256, True), (256, False), (512, True), (512, True), (512, True))  # channels, pooled
_UNITS = 1024
_LARGEST_SCALE = 64  # 32,768 channels
_SMALLEST = 2 ** sum(pooled for _, pooled in _CONVOLUTIONS)  # pixels a side that the poolings bring to one
_ENLARGED = {"kernel": 7, "stride": 2, "padding": 3}
_LARGE = 64  # pixels a side above which the first convolution halves the image


@NETS.register
@dataclass(frozen=True, kw_only=True)
class VggSettings(NetConfig):
    """VGG8b: six convolutions, four of them max-pooled, then 1024 fully connected units; batch norm in each layer.

    The first convolution is 7×7 with stride 2 for images of more than 64 pixels a side, as in the programs of both.
    """

    kind: ClassVar[str] = "vgg"
    dropout: float = 0.05
    """Share of feature maps, and of units in the last layer, dropped at the end of each layer while training."""
    scale: float = 1.0
    """Multiplier of the convolutions' channels; the fully connected layer keeps its 1024 units."""
    groups: int = 2
    """Groups K that the fully connected units form: their features are the mean over the groups, 1024 / groups long."""

    @property
    def num_layers(self) -> int:
        return len(_CONVOLUTIONS) + 1

    def resolve(self, shape: Shape) -> Self:
        if not 0 <= self.dropout < 1:
            raise UserError(f"`dropout` {self.dropout}: a share from 0 to below 1.")
        if not 0 < self.scale <= _LARGEST_SCALE:
            raise UserError(
                f"`scale` {self.scale}: must be a number above 0 and at most {_LARGEST_SCALE} (1 gives VGG8b)."
            )
        if self.groups < 1 or _UNITS % self.groups:
            raise UserError(
                f"`groups` {self.groups}: must divide the {_UNITS} fully connected units: 1, 2, 4, … {_UNITS}."
            )
        _, height, width = shape
        if min(height, width) < _SMALLEST:
            raise UserError(
                f"Images of {height}×{width} pixels are too small for VGG8b, which halves them four times: "
                f"height and width must be at least {_SMALLEST}."
            )
        return self

    def build(self, index: int, shape: Shape) -> Layer:
        grid = _grid_before(index, shape)
        inputs = self._channels(index - 1) if index else shape[0]
        if index == len(_CONVOLUTIONS):
            return FullyConnectedLayer(inputs * math.prod(grid), self)
        return VggLayer(
            inputs,
            self._channels(index),
            grid,
            enlarged=index == 0 and _is_large(shape),
            pooled=_CONVOLUTIONS[index][1],
            dropout=self.dropout,
        )

    def _channels(self, index: int) -> int:
        return max(1, round(_CONVOLUTIONS[index][0] * self.scale))

    def describe(self) -> str:
        scale = "" if self.scale == 1 else f" ×{self.scale:g}"
        return f"VGG8b{scale}, K = {self.groups}"


class VggLayer(ConvLayer):
    """(N, inputs, H, W) → (N, features, rows, columns): convolution, batch norm, ReLU, max pooling, dropout of maps.

    Args:
        grid: rows and columns of the layer's input.
        enlarged: 7×7 with stride 2 in place of 3×3.
        pooled: whether the maps are halved at the end.
    """

    def __init__(self, inputs: int, features: int, grid: Grid, *, enlarged: bool, pooled: bool, dropout: float) -> None:
        super().__init__(inputs, features, grid, **(_ENLARGED if enlarged else {}))
        self.pooled = pooled
        if pooled:
            self.grid = _halved(self.grid, 1)
        self.dropout = MapDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        maps = super().forward(x)
        if self.pooled:
            maps = F.max_pool2d(maps, 2)
        dropped: Tensor = self.dropout(maps)
        return dropped


class MapDropout(Dropout):
    """Dropout of whole feature maps (N, C, ·, ·), as both programs have it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        return x * super().forward(x.new_ones(*x.shape[:2], 1, 1))


class FullyConnectedLayer(LinearLayer):
    """(N, C, H, W) → (N, 1024): flatten, linear, batch norm, ReLU, dropout of units."""

    def __init__(self, inputs: int, settings: VggSettings) -> None:
        super().__init__(inputs, MlpSettings(width=_UNITS, groups=settings.groups, dropout=settings.dropout))
        self.batch_norm = nn.BatchNorm1d(_UNITS)

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(F.relu(self.batch_norm(self.linear(x.flatten(1)))))
        return dropped


def _is_large(shape: Shape) -> bool:
    return min(shape[1:]) > _LARGE


def _grid_before(index: int, shape: Shape) -> Grid:
    """Rows and columns that reach layer ``index``."""
    grid: Grid = shape[1:]
    if index and _is_large(shape):
        grid = convolved(grid, **_ENLARGED)
    return _halved(grid, sum(pooled for _, pooled in _CONVOLUTIONS[:index]))


def _halved(grid: Grid, times: int) -> Grid:
    return grid[0] >> times, grid[1] >> times
