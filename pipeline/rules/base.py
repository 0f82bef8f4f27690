"""What every method answers for one layer: what goes in, its loss, what it passes on, what its readout sees.

A layer works on *streams*: named tensors that travel together. Contrastive Forward-Forward has one stream, the
activations of all views. A method with more (a right-label and a wrong-label copy, two twin networks) names more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from pipeline.nets.base import Layer

Streams = dict[str, Tensor]


class Rule(ABC):
    """The learning rule of one layer. ``num_views`` augmented copies of each image reach the first layer."""

    num_views: int = 1

    def enter(self, images: Tensor) -> Streams:
        """Streams for the first layer from network input (V·N, channels, H, W), view-major."""
        return {"x": images}

    def forward(self, layer: Layer, streams: Streams) -> Streams:
        """The layer's outputs, attached to its own parameters only."""
        return {name: layer(tensor) for name, tensor in streams.items()}

    @abstractmethod
    def loss(self, layer: Layer, outputs: Streams, labels: Tensor) -> Tensor:
        """Scalar local loss of the outputs; labels (N,) int64 are shared by all views."""

    def pass_on(self, outputs: Streams) -> Streams:
        """What the next layer receives: detached, computed before this layer's own update."""
        # Contiguous, as it would come off a wire: another layout may mean other rounding in the next layer.
        return {name: tensor.detach().contiguous() for name, tensor in outputs.items()}

    def features(self, layer: Layer, outputs: Streams) -> Tensor:
        """Pooled features (V·N, C) that readouts and analyses see."""
        return layer.pool(outputs["x"])


class RuleSettings(Protocol):
    """A method's settings: enough to make the rule of any one layer."""

    def check(self) -> None:
        """Raises UserError where a value is out of range."""
        ...

    def build(self, index: int, num_layers: int) -> Rule:
        """The rule of layer ``index`` (0-based) of ``num_layers``."""
        ...
