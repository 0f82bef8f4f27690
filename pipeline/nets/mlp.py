"""Fully connected nets.

MLP[E L] (Aghagolzadeh & Ezoji 2025), and FC with groups and layer normalisation (Anonymous 2023, Table 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import NETS, Dropout, Layer, Net, Shape


@NETS.register
@dataclass(frozen=True, kw_only=True)
class MlpSettings(Net):
    """A fully connected net on flattened images."""

    kind: ClassVar[str] = "mlp"
    width: int = 500
    """Units per layer."""
    depth: int = 3
    """Number of layers."""
    groups: int = 1
    """Groups K that a layer's units form: its features are the mean over the groups, width / groups long."""
    norm: Literal["none", "layer"] = "none"
    """layer: LayerNorm behind each ReLU."""
    dropout: float = 0.0
    """Share of units dropped behind each ReLU, while training."""

    @property
    def num_layers(self) -> int:
        return self.depth

    def resolve(self, shape: Shape) -> Self:
        for name, value in (("--width", self.width), ("--depth", self.depth), ("--groups", self.groups)):
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1.")
        if self.width % self.groups:
            raise UserError(f"--groups {self.groups} does not divide --width {self.width}. Give a divisor of it.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout {self.dropout}: a share from 0 to below 1.")
        return self

    def build(self, index: int, shape: Shape) -> Layer:
        return LinearLayer(math.prod(shape) if index == 0 else self.width, self)

    def describe(self) -> str:
        kind = "FC" if self.groups > 1 or self.norm == "layer" else "MLP"
        return f"{kind}[{self.width} {self.depth}]" + (f", K = {self.groups}" if self.groups > 1 else "")


class LinearLayer(Layer):
    """(N, …) → (N, width): flatten, Linear, ReLU, then dropout and LayerNorm where the net has them."""

    def __init__(self, inputs: int, settings: MlpSettings) -> None:
        super().__init__()
        self.groups = settings.groups
        self.features = settings.width // settings.groups
        self.linear = nn.Linear(inputs, settings.width)
        self.dropout = Dropout(settings.dropout)
        self.norm = nn.LayerNorm(settings.width) if settings.norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        activations: Tensor = self.dropout(F.relu(self.linear(x.flatten(1))))
        if self.norm is None:
            return activations
        normed: Tensor = self.norm(activations)
        return normed

    def tokens(self, activations: Tensor) -> Tensor:
        grouped: Tensor = activations.unflatten(1, (self.groups, self.features))
        return grouped

    def pool(self, activations: Tensor) -> Tensor:
        return activations if self.groups == 1 else super().pool(activations)

    @property
    def readout_width(self) -> int:
        return self.groups * self.features

    def readout_input(self, activations: Tensor) -> Tensor:
        return activations
