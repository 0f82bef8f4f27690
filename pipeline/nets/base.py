"""What a net is to the rest of the system: settings that build one layer at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import PlainSerializer, PlainValidator
from torch import Tensor, nn

from pipeline.registry import Registered, Registry

Shape = tuple[int, int, int]
"""Image shape (channels, height, width)."""


_ROWS = 2048
"""Rows of a matrix of activations that a core's caches hold: 1 MiB at 128 columns in float32."""


class Layer(nn.Module):
    """One locally trained layer: activations in, activations out, and features for its loss and its readout.

    Attributes:
        features: length C of each feature vector.
        grid: rows and columns of the feature vectors over the image; None where they belong to no position in it.
        at_a_time: samples that a CPU thread takes through the layer together in float32, few enough for its caches;
            None: the whole batch, as where samples depend on one another (batch norm).
    """

    features: int
    grid: tuple[int, int] | None = None
    at_a_time: int | None = None

    def tokens(self, activations: Tensor) -> Tensor:
        """The feature vectors h (N, T, C) in the layer's own output: tokens, pixels or groups of units."""
        raise NotImplementedError

    def pool(self, activations: Tensor) -> Tensor:
        """Pooled feature h̄ (N, C): the mean over the feature vectors."""
        return self.tokens(activations).mean(dim=1)

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activations without a gradient, and pooled features (N, C) with one: all that most local losses need.

        A net whose last operation is linear can override it: the mean over feature vectors commutes with a linear map,
        so the backward pass through that map takes N rows in place of N·T.
        """
        activations = self(x)
        return activations.detach(), self.pool(activations)

    @property
    def readout_width(self) -> int:
        """Length of ``readout_input``."""
        return self.features

    def readout_input(self, activations: Tensor) -> Tensor:
        """What a linear readout of this layer sees (N, readout_width): the pooled feature, unless the net differs."""
        return self.pool(activations)


class Dropout(nn.Module):
    """Dropout from a generator of its own, so that its zeros belong to seed, layer and step.

    Attributes:
        generator: on the device of the activations; whoever trains the layer sets it, anew in every step.
    """

    generator: torch.Generator | None = None

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        assert self.generator is not None, "whoever trains the layer sets the generator"
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.share
        return x * kept / (1 - self.share)


def samples_at_a_time(num_tokens: int) -> int:
    """``Layer.at_a_time`` of a layer with so many feature vectors a sample."""
    return max(1, _ROWS // num_tokens)


@dataclass(frozen=True, kw_only=True)
class NetConfig(ABC, Registered):
    """A net's settings: enough to build any one layer without the others."""

    @property
    @abstractmethod
    def num_layers(self) -> int: ...

    def resolve(self, shape: Shape) -> Self:
        """These settings with every "auto" replaced. Raises UserError where net and image shape do not fit."""
        return self

    @abstractmethod
    def build(self, index: int, shape: Shape) -> Layer:
        """Layer ``index`` (0-based) for images of ``shape``; the caller seeds the initial weights."""

    @abstractmethod
    def describe(self) -> str:
        """The notation of Aghagolzadeh & Ezoji 2025, such as ViT[128 4 5]."""


NETS: Registry[NetConfig] = Registry("net")
"""Every net by its kind."""

NetField = Annotated[NetConfig, PlainValidator(NETS.load), PlainSerializer(NETS.dump)]
"""A field that holds any net and is saved with its kind."""
