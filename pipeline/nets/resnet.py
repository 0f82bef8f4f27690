"""ResNet-(6n+2) for CIFAR (He et al. 2016), one basic block a layer: the block-wise ResNet-32 of Choi et al. 2024."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import NETS, Shape
from pipeline.nets.featuremaps import BlockNet, ConvLayer, FeatureMapLayer, Grid, convolved, he_normal
from pipeline.nets.limits import DEEPEST, check_depth, check_sizes

_GROUPS = 3  # of basic blocks, each with twice the channels and half the image side of the one before


@NETS.register
@dataclass(frozen=True, kw_only=True)
class ResnetSettings(BlockNet):
    """A residual network for small images; shortcuts have no parameters (He et al. 2016, option A)."""

    kind: ClassVar[str] = "resnet"
    depth: int = 32
    """Weighted layers 6n + 2 as He et al. 2016 count them, head included: n basic blocks in each of three groups."""
    width: int = 16
    """Channels of the first group; the others have twice and four times as many."""
    stem: Literal["joined", "alone"] = "joined"
    """The convolution in front of the blocks. joined: one layer with the first block. alone: a layer of its own."""

    @property
    def num_layers(self) -> int:
        return _GROUPS * self._blocks_per_group + (self.stem == "alone")

    @property
    def _blocks_per_group(self) -> int:
        return (self.depth - 2) // 6

    def resolve(self, shape: Shape) -> Self:
        if self.depth > DEEPEST:
            check_depth("depth", self.depth)
        if self.depth < 8 or (self.depth - 2) % 6:
            below = self.depth - (self.depth - 2) % 6
            nearest = f"{below} or {below + 6}" if below >= 8 else "8"
            raise UserError(f"`depth` {self.depth}: a ResNet for CIFAR has 6n + 2 layers. The nearest: {nearest}.")
        check_sizes(("width", self.width))
        return self

    def build(self, index: int, shape: Shape) -> FeatureMapLayer:
        grid: Grid = shape[1:]
        stem = ConvLayer(shape[0], self.width, grid) if index == 0 else None
        if self.stem == "alone":
            if stem is not None:
                he_normal(stem)
                return stem
            index -= 1
        group, block = divmod(index, self._blocks_per_group)
        for _ in range(group if block else group - 1):
            grid = convolved(grid, stride=2)
        halves = group > 0 and block == 0
        features = self.width * 2**group
        return BasicBlock(features // 2 if halves else features, features, grid, stride=2 if halves else 1, stem=stem)

    def block(self, inputs: int, features: int, grid: Grid, *, stride: int) -> BasicBlock:
        return BasicBlock(inputs, features, grid, stride=stride)

    def describe(self) -> str:
        return f"ResNet-{self.depth}" + ("" if self.width == 16 else f", width {self.width}")


class BasicBlock(FeatureMapLayer):
    """(N, inputs, H, W) → (N, features, rows, columns): ReLU of two convolutions with batch norm, plus the input.

    Where the convolutions change the shape, the shortcut takes every second pixel and adds maps of zeros.

    Args:
        grid: rows and columns of the block's input.
        stem: what images pass first, in the first layer of a net.
    """

    def __init__(self, inputs: int, features: int, grid: Grid, *, stride: int, stem: ConvLayer | None = None) -> None:
        super().__init__(features, convolved(grid, stride=stride))
        self.stride = stride
        self.missing = features - inputs
        self.stem = stem
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.stem is not None:
            x = self.stem(x)
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        shortcut = x
        if self.stride > 1 or self.missing:  # else padding would copy it
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
        return F.relu(residual + shortcut, inplace=True)
