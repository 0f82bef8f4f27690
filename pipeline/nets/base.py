"""What a net is to the rest of the system: settings that build one layer at a time."""

from __future__ import annotations

from typing import Protocol, Self

from torch import Tensor, nn

Shape = tuple[int, int, int]
"""Image shape (channels, height, width)."""


class Layer(nn.Module):
    """One locally trained layer: activations in, activations out, and a pooled feature for its loss.

    Attributes:
        features: length C of the pooled feature.
    """

    features: int

    def pool(self, activations: Tensor) -> Tensor:
        """Pooled feature h̄ (N, C) of the layer's own output."""
        raise NotImplementedError


class Net(Protocol):
    """A net's settings: enough to build any one layer without the others."""

    @property
    def num_layers(self) -> int: ...

    def resolve(self, shape: Shape) -> Self:
        """These settings with every "auto" replaced. Raises UserError where net and image shape do not fit."""
        ...

    def build(self, index: int, shape: Shape) -> Layer:
        """Layer ``index`` (0-based) for images of ``shape``; the caller seeds the initial weights."""
        ...

    def describe(self) -> str:
        """The paper's notation, such as ViT[128 4 5]."""
        ...
