"""The small nets behind local modules: classifiers, projections, decoders, and AugLocal's cut-outs of the main net.

Their convolutions begin as a ResNet's do (He et al. 2016), as in the programs of Wang et al. 2021 and Ma et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.nets.base import NetConfig, Shape
from pipeline.nets.chain import LocalModule
from pipeline.nets.featuremaps import BlockNet, ConvLayer, FeatureMapLayer, Grid, he_normal
from pipeline.nets.sizes import without_values

DECODER_CHANNELS = 12
"""Of the convolution within InfoPro's decoder (Wang et al. 2021)."""


class Head(nn.Module):
    """Wang et al. 2021's "1c2f": convolution with batch norm and ReLU, pooling, two linear maps with a ReLU between.

    (N, C, H, W) → (N, outputs). The convolution doubles the channels and halves the image, 16→32 and 32→64; where the
    net grows no wider it keeps both, 64→64. Behind a module without feature maps the linear maps stand alone, on what a
    readout would see.
    """

    def __init__(self, module: LocalModule, *, width: int, outputs: int) -> None:
        super().__init__()
        maps = last_maps(module)
        self.conv: ConvLayer | None = None
        inputs = module.readout_width
        if maps is not None:
            widest = max(features for features, grid in feature_maps(module.net, module.shape) if grid)
            grows = maps.features < widest
            inputs = min(2 * maps.features, widest)
            self.conv = ConvLayer(maps.features, inputs, _grid(maps), stride=2 if grows else 1)
        self.hidden = nn.Linear(inputs, width)
        self.last = nn.Linear(width, outputs)
        he_normal(self)

    def forward(self, seen: Tensor) -> Tensor:
        """``seen``: the module's feature maps, or else what a readout of it sees."""
        pooled = seen if self.conv is None else self.conv.pool(self.conv(seen))
        result: Tensor = self.last(F.relu(self.hidden(pooled)))
        return result


class Decoder(nn.Module):
    """From feature maps (N, C, ·, ·) to the image's logits (N, channels, H, W) (Wang et al. 2021)."""

    def __init__(self, features: int, image: Shape) -> None:
        super().__init__()
        self.size = image[1:]
        self.conv = ConvLayer(features, DECODER_CHANNELS, self.size)
        self.last = nn.Conv2d(DECODER_CHANNELS, image[0], 3, padding=1)
        he_normal(self)

    def forward(self, maps: Tensor) -> Tensor:
        enlarged = F.interpolate(maps, size=self.size, mode="bilinear", align_corners=True)
        logits: Tensor = self.last(self.conv(enlarged))
        return logits


class PooledLinear(nn.Module):
    """Feature maps averaged until at most ``most`` values are left, then a linear map (Nøkland & Eidnes 2019)."""

    def __init__(self, maps: FeatureMapLayer, outputs: int, *, most: int) -> None:
        super().__init__()
        self.kernel, grid = pooling(maps.features, _grid(maps), most=most)
        self.linear = nn.Linear(maps.features * math.prod(grid), outputs)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.linear(_averaged(maps, self.kernel).flatten(1))
        return result


class PixelwiseHead(nn.Module):
    """DGL's: pooled to a quarter a side, three 1×1 convolutions, pooled to 2×2, two linear maps of that width, and one.

    All but the last with batch norm and ReLU. Source: Belilovsky et al. 2020, as the program of Ma et al. 2024 has it.
    """

    def __init__(self, maps: FeatureMapLayer, outputs: int) -> None:
        super().__init__()
        features = maps.features
        quarter = [math.ceil(side / 4) for side in _grid(maps)]
        self.first = _kernel_to(_grid(maps), quarter)
        grid = _pooled(_grid(maps), self.first)
        self.convs = nn.Sequential(*(ConvLayer(features, features, grid, kernel=1, padding=0) for _ in range(3)))
        self.second = _kernel_to(grid, [min(side, 2) for side in quarter])
        width = features * math.prod(_pooled(grid, self.second))
        self.linears = nn.Sequential(
            *(
                part
                for _ in range(2)
                for part in (nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
            )
        )
        self.last = nn.Linear(width, outputs)
        he_normal(self)

    def forward(self, maps: Tensor) -> Tensor:
        pooled = _averaged(self.convs(_averaged(maps, self.first)), self.second)
        result: Tensor = self.last(self.linears(pooled.flatten(1)))
        return result


class LaterBlocks(nn.Module):
    """AugLocal's: a block of the shape of each of some later layers of the net, pooling, and a linear map.

    A block halves the image at most once; what it misses of its layer's the next one makes up for. Behind a single
    block stands a batch norm. Source: the program of Ma et al. 2024.

    Args:
        numbers: the layers, in order.
    """

    def __init__(self, module: LocalModule, numbers: Sequence[int], outputs: int) -> None:
        super().__init__()
        net, maps = module.net, feature_maps(module.net, module.shape)
        assert isinstance(net, BlockNet), "the method refuses other nets"
        features, grid = maps[module.numbers[-1]]
        blocks = []
        for number in numbers:
            wanted, target = maps[number]
            assert grid is not None and target is not None, "every layer of such a net gives feature maps"
            block = net.block(features, wanted, grid, stride=2 if grid[0] > target[0] else 1)
            features, grid = wanted, block.grid
            blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm1d(features) if len(blocks) == 1 else nn.Identity()
        self.linear = nn.Linear(features, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        result: Tensor = self.linear(self.norm(self.blocks(maps).mean(dim=(2, 3))))
        return result


@cache
def feature_maps(net: NetConfig, shape: Shape) -> tuple[tuple[int, Grid | None], ...]:
    """Features and grid of every layer of a net; no grid where a layer gives no feature maps."""
    layers = without_values(net, shape)
    return tuple((layer.features, layer.grid if isinstance(layer, FeatureMapLayer) else None) for layer in layers)


def last_maps(module: LocalModule) -> FeatureMapLayer | None:
    """The layer whose feature maps the module gives; None where it gives others."""
    last = module.inner[-1]
    return last if isinstance(last, FeatureMapLayer) else None


def pooling(features: int, grid: Grid, *, most: int) -> tuple[Grid, Grid]:
    """Kernel of an average pooling after which at most ``most`` values are left, and the grid that it leaves.

    Rows and columns are halved in turn, rows first (Nøkland & Eidnes 2019). A pixel of each map is left at least.
    """
    kernel = [1, 1]
    while features * math.prod(_pooled(grid, (kernel[0], kernel[1]))) > most:
        side = 0 if kernel[0] == kernel[1] else 1
        if kernel[side] >= grid[side]:
            break
        kernel[side] *= 2
    return (kernel[0], kernel[1]), _pooled(grid, (kernel[0], kernel[1]))


def _grid(maps: FeatureMapLayer) -> Grid:
    assert maps.grid is not None
    return maps.grid


def _kernel_to(grid: Grid, sides: Sequence[int]) -> Grid:
    """Kernel of a pooling that leaves at most so many rows and columns."""
    rows, columns = (math.ceil(side / wanted) for side, wanted in zip(grid, sides, strict=True))
    return rows, columns


def _pooled(grid: Grid, kernel: Grid) -> Grid:
    rows, columns = (math.ceil(side / size) for side, size in zip(grid, kernel, strict=True))
    return rows, columns


def _averaged(maps: Tensor, kernel: Grid) -> Tensor:
    # Not adaptive pooling, whose backward pass has no deterministic kernel on a GPU.
    return maps if kernel == (1, 1) else F.avg_pool2d(maps, kernel, ceil_mode=True, count_include_pad=False)
