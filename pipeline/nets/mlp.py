"""Fully connected nets.

MLP[E L] (Aghagolzadeh & Ezoji 2025), and FC with groups and layer normalisation (Anonymous 2023, Table 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import BeforeValidator
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import NETS, Dropout, Layer, NetConfig, Shape
from pipeline.nets.limits import check_depth, check_sizes


def _as_named_now(norm: Any) -> Any:
    return "after" if norm == "layer" else norm  # its name in runs of version 0.1


Norm = Annotated[Literal["none", "after", "before", "before-all"], BeforeValidator(_as_named_now)]


@NETS.register
@dataclass(frozen=True, kw_only=True)
class MlpSettings(NetConfig):
    """A fully connected net on flattened images."""

    kind: ClassVar[str] = "mlp"
    width: int = 500
    """Units per layer."""
    depth: int = 3
    """Number of layers."""
    groups: int = 1
    """Groups K that a layer's units form: its features are the mean over the groups, width / groups long."""
    norm: Norm = "none"
    """LayerNorm of each layer. after: behind its ReLU, so that its loss sees normalised units. before: in front of its
    linear map, in all layers but the first, which has no layer before it; before-all: in the first one too."""
    dropout: float = 0.0
    """Share of units dropped behind each ReLU, while training."""

    @property
    def num_layers(self) -> int:
        return self.depth

    def resolve(self, shape: Shape) -> Self:
        check_sizes(("width", self.width), ("groups", self.groups))
        check_depth("depth", self.depth)
        if self.width % self.groups:
            raise UserError(f"`groups` {self.groups} does not divide `width` {self.width}. Give a divisor of it.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"`dropout` {self.dropout}: a share from 0 to below 1.")
        return self

    def build(self, index: int, shape: Shape) -> Layer:
        return LinearLayer(math.prod(shape) if index == 0 else self.width, self, first=index == 0)

    def describe(self) -> str:
        kind = "FC" if self.groups > 1 or self.norm != "none" else "MLP"
        return f"{kind}[{self.width} {self.depth}]" + (f", K = {self.groups}" if self.groups > 1 else "")


class LinearLayer(Layer):
    """(N, …) → (N, width): flatten, Linear, ReLU, then dropout where the net has it, and LayerNorm where it stands."""

    def __init__(self, inputs: int, settings: MlpSettings, *, first: bool = False) -> None:
        super().__init__()
        self.groups = settings.groups
        self.features = settings.width // settings.groups
        self.linear = nn.Linear(inputs, settings.width)
        self.dropout = Dropout(settings.dropout)
        before = settings.norm == "before-all" or (settings.norm == "before" and not first)
        self.norm_before = nn.LayerNorm(inputs) if before else None
        self.norm = nn.LayerNorm(settings.width) if settings.norm == "after" else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.norm_before is not None:
            x = self.norm_before(x)
        activations: Tensor = self.dropout(F.relu(self.linear(x)))
        return activations if self.norm is None else self.norm(activations)

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
