"""Several layers of a net as one: a local module, or the whole net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

from torch import Tensor, nn

from pipeline.nets.base import Layer, NetConfig, Shape


class LayerChain(Layer):
    """Layers one after the other; features and the readout's input are the last one's."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.features, self.grid = layers[-1].features, layers[-1].grid

    @property
    def inner(self) -> list[Layer]:
        """The layers, first to last."""
        return cast("list[Layer]", list(self.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = layer(x)
        return x

    def tokens(self, activations: Tensor) -> Tensor:
        return self.inner[-1].tokens(activations)

    def pool(self, activations: Tensor) -> Tensor:
        return self.inner[-1].pool(activations)

    @property
    def readout_width(self) -> int:
        return self.inner[-1].readout_width

    def readout_input(self, activations: Tensor) -> Tensor:
        return self.inner[-1].readout_input(activations)


@dataclass(frozen=True, kw_only=True)
class ModularNet(NetConfig):
    """Local modules: so many layers of another net after the other form one layer of this one."""

    kind: ClassVar[str] = "modular"
    net: NetConfig
    sizes: tuple[int, ...]
    """Layers of each module. They add up to the net's."""

    @property
    def num_layers(self) -> int:
        return len(self.sizes)

    def resolve(self, shape: Shape) -> Self:
        return replace(self, net=self.net.resolve(shape))

    def build(self, index: int, shape: Shape) -> LocalModule:
        first = sum(self.sizes[:index])
        numbers = range(first, first + self.sizes[index])
        return LocalModule([self.net.build(number, shape) for number in numbers], self.net, shape, numbers)

    def describe(self) -> str:
        modules = f", {len(self.sizes)} modules" if len(self.sizes) < self.net.num_layers else ""
        return self.net.describe() + modules


class LocalModule(LayerChain):
    """Layers of a net that learn together, and where in it they are.

    Attributes:
        net: the whole net.
        shape: of its images.
        numbers: which of its layers these are.
    """

    def __init__(self, layers: Sequence[Layer], net: NetConfig, shape: Shape, numbers: range) -> None:
        super().__init__(layers)
        self.net, self.shape, self.numbers = net, shape, numbers


def even_sizes(total: int, parts: int) -> tuple[int, ...]:
    """``total`` in ``parts`` numbers as even as can be, larger ones last."""
    small, larger = divmod(total, parts)
    return tuple(small + (part >= parts - larger) for part in range(parts))
