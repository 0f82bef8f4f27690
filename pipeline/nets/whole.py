"""A whole net as one layer, for methods whose error signal comes from the net's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from pipeline.nets.base import Layer, NetConfig, Shape
from pipeline.nets.feedback import give_feedback


@dataclass(frozen=True, kw_only=True)
class WholeNet(NetConfig):
    """All layers of another net, one after the other, as the only layer of this one."""

    kind: ClassVar[str] = "whole"
    net: NetConfig
    label: str
    """What stands before the net's name: BP."""
    feedback: bool = False
    """Fixed random feedback weights in every linear layer and convolution."""

    @property
    def num_layers(self) -> int:
        return 1

    def resolve(self, shape: Shape) -> Self:
        return replace(self, net=self.net.resolve(shape))

    def build(self, index: int, shape: Shape) -> WholeLayer:
        # The layers first: a seed gives the same initial weights with feedback weights and without.
        layers = [self.net.build(number, shape) for number in range(self.net.num_layers)]
        if self.feedback:
            for number, layer in enumerate(layers):
                give_feedback(layer, self.net.build(number, shape))
        return WholeLayer(layers, output_shapes(self.net, shape))

    def describe(self) -> str:
        return f"{self.label} {self.net.describe()}"


class WholeLayer(Layer):
    """Images in, the last layer's activations out; its features and its readout's input are the last layer's too.

    Attributes:
        output_shapes: of each inner layer's activations, without the batch.
    """

    def __init__(self, layers: Sequence[Layer], output_shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.output_shapes = tuple(output_shapes)
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


def output_shapes(net: NetConfig, shape: Shape) -> list[torch.Size]:
    """Shape of each layer's activations for one image, without the batch: a dry run on the meta device."""
    shapes = []
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(1, *shape)
        for index in range(net.num_layers):
            x = net.build(index, shape).eval()(x)
            shapes.append(x.shape[1:])
    return shapes
