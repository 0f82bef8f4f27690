"""Small convolutional nets: conv256 and conv512 (Anonymous 2023, Table 4; Choi et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from pipeline.errors import UserError, shortened
from pipeline.nets.base import NETS, Layer, Shape
from pipeline.nets.featuremaps import BlockNet, ConvLayer, Grid, convolved
from pipeline.nets.limits import check_depth, check_sizes

_NAMED = ((64, 256), (64, 256, 512))


@NETS.register
@dataclass(frozen=True, kw_only=True)
class ConvSettings(BlockNet):
    """3×3 convolutions with batch norm and ReLU, one a layer; all but the first halve the image."""

    kind: ClassVar[str] = "conv"
    channels: tuple[int, ...] = (64, 256)
    """Channels of each layer: 64 256 is conv256, 64 256 512 is conv512."""
    first_padding: Literal[0, 1] = 0
    """Zero padding of the first convolution in pixels. 0: CFL. 1: DCL."""

    @property
    def num_layers(self) -> int:
        return len(self.channels)

    def resolve(self, shape: Shape) -> Self:
        if not self.channels or min(self.channels) < 1:
            given = " ".join(map(shortened, self.channels))
            raise UserError(f"`channels` {given}: one number of at least 1 for each layer, such as 64 256.")
        check_depth("channels", len(self.channels))
        check_sizes(*(("channels", channels) for channels in self.channels))
        _, height, width = shape
        if self.first_padding == 0 and min(height, width) < 3:
            raise UserError(
                f"`first_padding` 0 needs images of at least 3×3 pixels; these have {height}×{width}. "
                "Use `first_padding` 1."
            )
        return self

    def build(self, index: int, shape: Shape) -> Layer:
        grid: Grid = shape[1:]
        if index == 0:
            return ConvLayer(shape[0], self.channels[0], grid, padding=self.first_padding)
        grid = convolved(grid, padding=self.first_padding)
        for _ in range(index - 1):
            grid = convolved(grid, stride=2)
        return self.block(self.channels[index - 1], self.channels[index], grid, stride=2)

    def block(self, inputs: int, features: int, grid: Grid, *, stride: int) -> ConvLayer:
        return ConvLayer(inputs, features, grid, stride=stride)

    def describe(self) -> str:
        if self.channels in _NAMED:
            return f"conv{self.channels[-1]}"
        return f"conv[{' '.join(str(channels) for channels in self.channels)}]"
