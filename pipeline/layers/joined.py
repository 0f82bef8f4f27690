"""Readouts that see several layers: what they see of earlier ones travels along with the activations."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pipeline.methods import Activations, MethodConfig
from pipeline.nets import Layer, NetConfig, Shape
from pipeline.nets.sizes import readout_widths

JOINED = "joined"
"""Name under which the readout inputs of earlier layers travel, side by side (V·N, Σ widths)."""


class JoinedFeatures:
    """Which layers' features reach layer ``index``, what its readout sees of them, and what goes on to the next layer.

    Args:
        layer: the layer itself.
        readouts: the layers that have a readout. What no readout sees does not travel.

    Attributes:
        width: of what the layer's readout sees.
    """

    def __init__(
        self, method: MethodConfig, net: NetConfig, shape: Shape, index: int, layer: Layer, readouts: Collection[int]
    ) -> None:
        seen = {reader: method.readout_inputs(reader, net.num_layers) for reader in readouts}
        self._index = index
        self._arriving, self._leaving = _needed(seen, index - 1), _needed(seen, index)
        self._seen = tuple(seen.get(index, (index,)))
        widths = readout_widths(net, shape) if self._arriving else []
        self._arriving_widths = [widths[one] for one in self._arriving]
        self.width = sum(layer.readout_width if one == index else widths[one] for one in self._seen)

    @property
    def goes_on(self) -> bool:
        """Whether a later layer's readout sees this one, or what arrived of earlier ones."""
        return bool(self._leaving)

    def arrived(self, activations: Activations) -> tuple[Activations, Tensor | None]:
        """The layer's activations, and what came along with them."""
        if JOINED not in activations:
            return activations, None
        return {name: tensor for name, tensor in activations.items() if name != JOINED}, activations[JOINED]

    def seen(self, own: Tensor, arrived: Tensor | None) -> Tensor:
        """What the layer's readout sees (V·N, width): its own input (V·N, C) and what arrived of earlier layers."""
        return self._side_by_side(self._seen, own, arrived)

    def onward(self, own: Tensor, arrived: Tensor | None) -> Tensor:
        """What travels on to the next layer, where anything does."""
        return self._side_by_side(self._leaving, own, arrived)

    def _side_by_side(self, layers: tuple[int, ...], own: Tensor, arrived: Tensor | None) -> Tensor:
        if layers == (self._index,):
            return own
        assert arrived is not None, "the layer before sends along what it is asked for"
        pieces = dict(zip(self._arriving, arrived.split(self._arriving_widths, dim=1), strict=True))
        pieces[self._index] = own
        return torch.cat([pieces[one] for one in layers], dim=1)


def _needed(seen: dict[int, tuple[int, ...]], upto: int) -> tuple[int, ...]:
    """Layers up to ``upto`` that a readout of a later layer sees, in order."""
    return tuple(sorted({one for reader, layers in seen.items() if reader > upto for one in layers if one <= upto}))
