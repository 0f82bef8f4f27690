"""A whole net as one layer, for methods whose error signal comes from the net's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from pipeline.nets.base import Layer, NetConfig, Shape
from pipeline.nets.chain import LayerChain
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


class WholeLayer(LayerChain):
    """Images in, the last layer's activations out.

    Attributes:
        output_shapes: of each inner layer's activations, without the batch.
    """

    def __init__(self, layers: Sequence[Layer], output_shapes: Sequence[torch.Size]) -> None:
        super().__init__(layers)
        self.output_shapes = tuple(output_shapes)


def output_shapes(net: NetConfig, shape: Shape) -> list[torch.Size]:
    """Shape of each layer's activations for one image, without the batch: a dry run on the meta device."""
    shapes = []
    with torch.device("meta"), torch.no_grad():
        x = torch.empty(1, *shape)
        for index in range(net.num_layers):
            x = net.build(index, shape).eval()(x)
            shapes.append(x.shape[1:])
    return shapes
