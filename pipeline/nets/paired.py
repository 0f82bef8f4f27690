"""Nets whose layers take two samples at a time and weigh both alike (Chen et al. 2025).

The first layer sees a pair of images as one image of twice the channels. As both halves have the same weights, it
computes W·x + W·x′ with its bias twice, and needs no wider weights. A later layer pairs its inputs anew (Algorithm 2 of
the paper), or goes on with what the layer before it made of a pair (Algorithm 1). Shown single samples, such a net sees
each of them paired with itself.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import NETS, Layer, NetConfig, Shape
from pipeline.nets.featuremaps import FeatureMapLayer, Grid, convolved
from pipeline.nets.limits import check_depth, check_sizes
from pipeline.per_layer import check_per_layer, of_layer

Pairing = Literal["anew", "passed"]
Activation = Literal["triangle", "relu"]
MapPooling = Literal["max", "average"]

_EPSILON = 1e-8  # under the root of a sample's variance: one without any stays 0


def standardised(x: Tensor) -> Tensor:
    """Samples (N, …), each with a mean of 0 and a deviation of 1 over all its dimensions."""
    return F.layer_norm(x, x.shape[1:], eps=_EPSILON)


def triangle(x: Tensor) -> Tensor:
    """What each channel of (N, C, …) has above the mean of all channels in its place, else 0 (Coates et al. 2011)."""
    return F.relu(x - x.mean(dim=1, keepdim=True))


def activated(weighed: Tensor, activation: Activation) -> Tensor:
    """Pairs (N, C, …) behind a layer's nonlinearity."""
    return triangle(weighed) if activation == "triangle" else F.relu(weighed)


class PairedLayer(Layer):
    """A layer that weighs both samples of a pair alike.

    Attributes:
        pairs: whether it pairs its inputs anew. Otherwise they are what the layer before made of pairs.
        next_pairs: the same of the next layer; True for the last one.
        standardises: whether it standardises its inputs.
    """

    pairs: bool
    next_pairs: bool
    standardises: bool

    @abstractmethod
    def weigh(self, x: Tensor) -> Tensor:
        """W·x + b of each input (N, C, …), standardised before where the layer does that."""

    @abstractmethod
    def passed_on(self, weighed: Tensor) -> Tensor:
        """What the next layer gets of W·x + W·x′ + 2b (N, C, …): its nonlinearity, then its pooling."""

    def with_itself(self, weighed: Tensor) -> Tensor:
        """W·x + W·x′ + 2b where x′ is x (N, C, …), from W·x + b; what comes paired stays as it is."""
        return 2 * weighed if self.pairs else weighed

    def with_others(self, weighed: Tensor, others: Tensor) -> Tensor:
        """W·x + W·x′ + 2b (N, C, …) of samples and their partners, from W·x + b and W·x′ + b."""
        return weighed + others

    def places(self, weighed: Tensor) -> Tensor | None:
        """Of pairs (N, C, …), at which positions (N, …) there is anything, as of sequences that differ in length; None:
        at all."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        return self.passed_on(self.with_itself(self.weigh(x)))


@dataclass(frozen=True, kw_only=True)
class PairedNet(NetConfig):
    """What nets of paired layers have in common."""

    pairing: tuple[Pairing, ...] = ("anew",)
    """How each layer gets pairs, one value for all or one for each. anew: it standardises its inputs and pairs them
    (Algorithm 2 of Chen et al. 2025), as the first one must. passed: it goes on with what the layer before made of
    pairs (Algorithm 1)."""
    activation: tuple[Activation, ...] = ("triangle",)
    """What each layer passes on, one value for all or one for each. triangle: what a unit has above the mean of all
    units in its place. relu: what it has above 0. Layers learn from ReLU either way."""
    standardise: Literal["paired", "all"] = "paired"
    """Layers that standardise their inputs, each sample to mean 0 and deviation 1 over all its dimensions. paired:
    those that pair anew. all: those that go on with pairs as well."""

    def resolve(self, shape: Shape) -> Self:
        check_per_layer(self.num_layers, pairing=self.pairing, activation=self.activation)
        if self.pairing[0] != "anew":
            raise UserError("`pairing` passed: the first layer has none before it that could pass pairs. Give anew.")
        return self

    def pairs(self, index: int) -> bool:
        """Whether layer ``index`` pairs its inputs anew; True behind the last layer."""
        return index == self.num_layers or of_layer(self.pairing, index) == "anew"

    def standardises(self, index: int) -> bool:
        """Whether layer ``index`` standardises its inputs."""
        return self.standardise == "all" or self.pairs(index)


@NETS.register
@dataclass(frozen=True, kw_only=True)
class PairedMlpSettings(PairedNet):
    """A fully connected net on flattened pairs of images."""

    kind: ClassVar[str] = "paired-mlp"
    width: int = 2000
    """Units per layer."""
    depth: int = 2
    """Number of layers."""

    @property
    def num_layers(self) -> int:
        return self.depth

    def resolve(self, shape: Shape) -> Self:
        check_sizes(("width", self.width))
        check_depth("depth", self.depth)
        return super().resolve(shape)

    def build(self, index: int, shape: Shape) -> PairedLinear:
        return PairedLinear(math.prod(shape) if index == 0 else self.width, self, index)

    def describe(self) -> str:
        return f"paired MLP[{self.width} {self.depth}]"


class PairedLinear(PairedLayer):
    """(N, …) → (N, width): flatten, Linear, triangle or ReLU. A readout sees them standardised."""

    def __init__(self, inputs: int, settings: PairedMlpSettings, index: int) -> None:
        super().__init__()
        self.features = settings.width
        self.pairs, self.next_pairs = settings.pairs(index), settings.pairs(index + 1)
        self.standardises = settings.standardises(index)
        self.activation: Activation = of_layer(settings.activation, index)
        self.linear = nn.Linear(inputs, settings.width)

    def weigh(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        weighed: Tensor = self.linear(standardised(x) if self.standardises else x)
        return weighed

    def passed_on(self, weighed: Tensor) -> Tensor:
        return activated(weighed, self.activation)

    def tokens(self, activations: Tensor) -> Tensor:
        return activations[:, None]

    def pool(self, activations: Tensor) -> Tensor:
        return activations

    def readout_input(self, activations: Tensor) -> Tensor:
        return standardised(activations)


@NETS.register
@dataclass(frozen=True, kw_only=True)
class PairedConvSettings(PairedNet):
    """Convolutions on pairs of images, each followed by a pooling that halves the image."""

    kind: ClassVar[str] = "paired-conv"
    channels: tuple[int, ...] = (96, 384, 1536)
    """Channels of each layer."""
    kernel: tuple[int, ...] = (3,)
    """Side of each layer's convolution in pixels, an odd number: one for all layers or one for each. The image keeps
    its size; beyond its edge the first layer sees it reflected, the others zeros."""
    pools: tuple[MapPooling, ...] = ("max",)
    """How each layer halves the image, one value for all or one for each. max: over 4×4 pixels. average: over 2×2."""

    @property
    def num_layers(self) -> int:
        return len(self.channels)

    def resolve(self, shape: Shape) -> Self:
        check_depth("channels", len(self.channels))
        check_sizes(*(("channels", channels) for channels in self.channels))
        check_per_layer(self.num_layers, kernel=self.kernel, pools=self.pools)
        smallest = min(shape[1:])
        for side in self.kernel:
            if side < 1 or side % 2 == 0 or side // 2 >= smallest:
                raise UserError(f"`kernel` {side}: must be odd and at most {2 * smallest - 1}, for images this large.")
        if smallest >> self.num_layers < 2:
            raise UserError(
                f"Images of {shape[1]}×{shape[2]} pixels are too small for {self.num_layers} layers that halve them "
                f"and readouts that do so once more: height and width must be at least {2 << self.num_layers}. Give "
                "fewer `channels`, or larger images (`image_size`)."
            )
        return super().resolve(shape)

    def build(self, index: int, shape: Shape) -> PairedConv:
        grid: Grid = shape[1:]
        for before in range(index):
            grid = _halved(grid, of_layer(self.pools, before))
        return PairedConv(self.channels[index - 1] if index else shape[0], self, index, grid)

    def describe(self) -> str:
        return f"paired conv[{' '.join(map(str, self.channels))}]"


class PairedConv(PairedLayer, FeatureMapLayer):
    """(N, inputs, H, W) → (N, features, H/2, W/2): convolution, triangle or ReLU, pooling.

    A readout sees its maps halved once more, by the mean over 2×2 pixels, and standardised.

    Args:
        grid: rows and columns of the layer's input.
    """

    def __init__(self, inputs: int, settings: PairedConvSettings, index: int, grid: Grid) -> None:
        self.pooling: MapPooling = of_layer(settings.pools, index)
        FeatureMapLayer.__init__(self, settings.channels[index], _halved(grid, self.pooling))
        self.pairs, self.next_pairs = settings.pairs(index), settings.pairs(index + 1)
        self.standardises = settings.standardises(index)
        self.activation: Activation = of_layer(settings.activation, index)
        side = of_layer(settings.kernel, index)
        self.conv = nn.Conv2d(
            inputs, self.features, side, padding=side // 2, padding_mode="reflect" if index == 0 else "zeros"
        )

    def weigh(self, x: Tensor) -> Tensor:
        weighed: Tensor = self.conv(standardised(x) if self.standardises else x)
        return weighed

    def passed_on(self, weighed: Tensor) -> Tensor:
        maps = activated(weighed, self.activation)
        return F.max_pool2d(maps, 4, stride=2, padding=1) if self.pooling == "max" else F.avg_pool2d(maps, 2)

    @property
    def readout_width(self) -> int:
        assert self.grid is not None, "feature maps have one"
        rows, columns = self.grid
        return self.features * (rows // 2) * (columns // 2)

    def readout_input(self, activations: Tensor) -> Tensor:
        return standardised(F.avg_pool2d(activations, 2)).flatten(1)


def _halved(grid: Grid, pooling: MapPooling) -> Grid:
    """Rows and columns behind a layer's pooling."""
    kernel, padding = (4, 1) if pooling == "max" else (2, 0)
    return convolved(grid, kernel=kernel, stride=2, padding=padding)
