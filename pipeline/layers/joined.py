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
        seen = {reader: method.readout_layers(reader, net.num_layers) for reader in readouts}
        self._arriving = _needed(seen, index - 1)
        self._leaving = _needed(seen, index)
        self._index = index
        own = tuple(seen.get(index, (index,)))
        self.width = layer.readout_width
        self._columns: list[slice] = []  # of what arrives and the layer's own, side by side
        if self._arriving or own != (index,):
            widths = readout_widths(net, shape)
            self.width = sum(widths[one] for one in own)
            offsets = _offsets([*self._arriving, index], widths)
            self._columns = [offsets[one] for one in own]
            self._kept = [offsets[one] for one in self._leaving]

    @property
    def travels(self) -> bool:
        """Whether the layer's readout sees others, or later ones see it or what goes through it."""
        return bool(self._arriving or self._leaving)

    def arrived(self, activations: Activations) -> tuple[Activations, Tensor | None]:
        """The layer's activations, and what came along with them."""
        if JOINED not in activations:
            return activations, None
        return {name: tensor for name, tensor in activations.items() if name != JOINED}, activations[JOINED]

    def seen(self, own: Tensor, arrived: Tensor | None) -> Tensor:
        """What the layer's readout sees (V·N, width): its own input (V·N, C) and what arrived of earlier layers."""
        if not self._columns:
            return own
        return self._pick(self._columns, own, arrived)

    def onward(self, own: Tensor, arrived: Tensor | None) -> Tensor | None:
        """What travels on to the next layer; None where no later readout sees any of it."""
        if not self._leaving:
            return None
        if self._leaving == (self._index,) and not self._arriving:
            return own
        return self._pick(self._kept, own, arrived)

    def _pick(self, columns: list[slice], own: Tensor, arrived: Tensor | None) -> Tensor:
        assert arrived is not None or not self._arriving, "the layer before sends along what it is asked for"
        whole = own if arrived is None else torch.cat([arrived, own], dim=1)
        return torch.cat([whole[:, one] for one in columns], dim=1)


def _needed(seen: dict[int, tuple[int, ...]], upto: int) -> tuple[int, ...]:
    """Layers up to ``upto`` that a readout of a later layer sees, in order."""
    return tuple(sorted({one for reader, layers in seen.items() if reader > upto for one in layers if one <= upto}))


def _offsets(layers: list[int], widths: list[int]) -> dict[int, slice]:
    found, begin = {}, 0
    for layer in layers:
        found[layer] = slice(begin, begin + widths[layer])
        begin += widths[layer]
    return found
