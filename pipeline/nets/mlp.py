"""MLP[E L] of seed 001: L linear layers of width E with ReLU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import Layer, Shape


@dataclass(frozen=True, kw_only=True)
class MlpSettings:
    """A fully connected net on flattened images."""

    kind: Annotated[Literal["mlp"], tyro.conf.Suppress] = "mlp"
    width: int = 500
    """Units per layer."""
    depth: int = 3
    """Number of layers."""

    @property
    def num_layers(self) -> int:
        return self.depth

    def resolve(self, shape: Shape) -> Self:
        for name, value in (("--width", self.width), ("--depth", self.depth)):
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1.")
        return self

    def build(self, index: int, shape: Shape) -> Layer:
        return LinearLayer(math.prod(shape) if index == 0 else self.width, self.width)

    def describe(self) -> str:
        return f"MLP[{self.width} {self.depth}]"


class LinearLayer(Layer):
    """(N, …) → (N, width): flatten, Linear, ReLU. The output is its own pooled feature."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.features = width
        self.linear = nn.Linear(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x.flatten(1)))

    def pool(self, activations: Tensor) -> Tensor:
        return activations
