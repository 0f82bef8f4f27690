"""A net whose layers come in pairs, for methods whose twins teach each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from pipeline.nets.base import Layer, NetConfig, Shape


@dataclass(frozen=True, kw_only=True)
class TwinNet(NetConfig):
    """Each layer of another net twice, with initial weights of its own each."""

    kind: ClassVar[str] = "twins"
    net: NetConfig

    @property
    def num_layers(self) -> int:
        return self.net.num_layers

    def resolve(self, shape: Shape) -> Self:
        return replace(self, net=self.net.resolve(shape))

    def build(self, index: int, shape: Shape) -> TwinLayer:
        return TwinLayer(self.net.build(index, shape), self.net.build(index, shape))

    def describe(self) -> str:
        return f"two {self.net.describe()}"


class TwinLayer(Layer):
    """Two layers of one shape. What is asked of it as of any layer, the first one answers."""

    def __init__(self, first: Layer, second: Layer) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.features, self.grid, self.at_a_time = first.features, first.grid, first.at_a_time

    def forward(self, x: Tensor) -> Tensor:
        activations: Tensor = self.first(x)
        return activations

    def tokens(self, activations: Tensor) -> Tensor:
        return self.first.tokens(activations)

    def pool(self, activations: Tensor) -> Tensor:
        return self.first.pool(activations)

    @property
    def readout_width(self) -> int:
        return self.first.readout_width

    def readout_input(self, activations: Tensor) -> Tensor:
        return self.first.readout_input(activations)
