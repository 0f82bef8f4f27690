"""A bidirectional recurrent net on pairs of sequences, without backpropagation through time (Chen et al. 2025).

An image is a sequence: its rows, from the top, are time steps. In each direction a layer has, at step t of a pair,

    p_t = U·x_t + U·x′_t + 2b + R·s_(t−1)        s_t = ReLU(p_t), standardised;  s_0 = 0

where no gradient goes through s: every step learns from its own goodness alone.

Sequences may differ in length. A row whose pixels are all the same is no time step: it leaves the state as it is, and
counts in no mean. A pair lasts as long as the longer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.nets.base import NETS, Shape
from pipeline.nets.limits import check_depth, check_sizes
from pipeline.nets.paired import Activation, PairedLayer, PairedNet, activated
from pipeline.per_layer import of_layer

_EPSILON = 1e-8  # under the root of a variance, as where samples are standardised


@NETS.register
@dataclass(frozen=True, kw_only=True)
class BirnnSettings(PairedNet):
    """A bidirectional recurrent net whose time steps are the rows of an image. States pass no gradient back in time."""

    kind: ClassVar[str] = "birnn"
    width: int = 500
    """Units of each layer in each of its two directions."""
    depth: int = 1
    """Number of layers, each of which sees the states of the one before at every time step."""

    @property
    def num_layers(self) -> int:
        return self.depth

    def resolve(self, shape: Shape) -> Self:
        check_sizes(("width", self.width))
        check_depth("depth", self.depth)
        if shape[0] * shape[2] < 2:
            raise UserError(
                f"Images of {shape[1]}×{shape[2]} pixels have one value a row. Net birnn needs at least two."
            )
        return super().resolve(shape)

    def build(self, index: int, shape: Shape) -> BirnnLayer:
        return BirnnLayer(2 * self.width if index else shape[0] * shape[2], self, index)

    def describe(self) -> str:
        return f"Bi-RNN[{self.width}+{self.width} {self.depth}]"


class BirnnLayer(PairedLayer):
    """Images (N, C, T, F), or what a layer before passes on (N, inputs, T), → (N, 2·width, T).

    The first half of the units goes from the first time step to the last one, the other half from the last to the
    first. A readout sees the states in which both end, standardised.

    Args:
        inputs: values of each time step.
    """

    def __init__(self, inputs: int, settings: BirnnSettings, index: int) -> None:
        super().__init__()
        self.width = settings.width
        self.features = 2 * settings.width
        self.pairs, self.next_pairs = settings.pairs(index), settings.pairs(index + 1)
        self.standardises = settings.standardises(index)
        self.activation: Activation = of_layer(settings.activation, index)
        self.input = nn.Linear(inputs, self.features)
        self.recurrent = nn.Parameter(torch.empty(2, settings.width, settings.width))  # of each direction (to, from)
        for parameter in self.parameters():  # as torch.nn.RNN initialises itself
            nn.init.uniform_(parameter, -(settings.width**-0.5), settings.width**-0.5)

    def weigh(self, x: Tensor) -> Tensor:
        """U·x + b of every time step (N, T, 2·width), 0 where there is none. Steps are standardised, each over its own
        values, where the layer does that."""
        steps = (x.transpose(1, 2) if x.ndim == 4 else x.transpose(1, 2)[:, :, None]).flatten(2)  # (N, T, inputs)
        there = (steps != steps[..., :1]).any(dim=2, keepdim=True)
        weighed: Tensor = self.input(_standardised(steps) if self.standardises else steps)
        return weighed * there

    def with_itself(self, weighed: Tensor) -> Tensor:
        return self._in_time(super().with_itself(weighed))

    def with_others(self, weighed: Tensor, others: Tensor) -> Tensor:
        return self._in_time(super().with_others(weighed, others))

    def places(self, weighed: Tensor) -> Tensor | None:
        return _there(weighed)

    def passed_on(self, weighed: Tensor) -> Tensor:
        return activated(weighed, self.activation)

    def tokens(self, activations: Tensor) -> Tensor:
        return activations.transpose(1, 2)

    def pool(self, activations: Tensor) -> Tensor:
        there = _there(activations)
        return activations.sum(dim=2) / there.sum(dim=1, keepdim=True).clamp(min=1)

    def readout_input(self, activations: Tensor) -> Tensor:
        there = _there(activations)
        steps = torch.arange(there.shape[1], device=there.device)
        last = (steps * there).amax(dim=1)
        first = len(steps) - 1 - (steps.flip(0) * there).amax(dim=1)
        ends = [
            half.take_along_dim(end[:, None, None], dim=2)[..., 0]
            for half, end in zip(activations.split(self.width, dim=1), (last, first), strict=True)
        ]
        return torch.cat([_standardised(end) for end in ends], dim=1)

    def _in_time(self, driven: Tensor) -> Tensor:
        """p (N, 2·width, T) of what drives each step (N, T, 2·width); 0 at the steps where that is 0."""
        there = (driven != 0).any(dim=2)  # (N, T)
        forward, backward = driven.split(self.width, dim=2)
        both = torch.stack([forward, backward.flip(1)])  # (2, N, T, width), each in its own order of time
        holds = torch.stack([there, there.flip(1)])[..., None]  # (2, N, T, 1)
        state, steps = torch.zeros_like(both[:, :, 0]), []
        for drive, hold in zip(both.unbind(2), holds.unbind(2), strict=True):
            step = torch.baddbmm(drive, state, self.recurrent.transpose(1, 2))
            steps.append(step)
            state = torch.where(hold, _standardised(F.relu(step.detach())), state)
        forward, backward = torch.stack(steps, dim=3).unbind()  # (N, width, T)
        return torch.cat([forward, backward.flip(2)], dim=1) * there[:, None]


def _there(x: Tensor) -> Tensor:
    """At which time steps (N, T) of (N, C, T) there is anything."""
    return (x != 0).any(dim=1)


def _standardised(x: Tensor) -> Tensor:
    """Vectors (…, C), each with a mean of 0 and a deviation of 1."""
    return F.layer_norm(x, x.shape[-1:], eps=_EPSILON)
