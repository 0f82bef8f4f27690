"""What a net's sizes are, from its layers on the meta device: without memory or arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.nets import NetConfig, Shape
from pipeline.nets.base import Layer

_META = torch.device("meta")


def layer_features(net: NetConfig, shape: Shape) -> list[int]:
    """Length C of each layer's feature vectors."""
    return [layer.features for layer in without_values(net, shape)]


def readout_widths(net: NetConfig, shape: Shape) -> list[int]:
    """Length of what a readout sees of each layer."""
    return [layer.readout_width for layer in without_values(net, shape)]


def num_parameters(net: NetConfig, shape: Shape) -> int:
    """Parameters of all layers, without readouts."""
    return sum(p.numel() for layer in without_values(net, shape) for p in layer.parameters())


def without_values(net: NetConfig, shape: Shape) -> list[Layer]:
    """The net's layers on the meta device: shapes without values, in milliseconds."""
    with on_meta_device():
        return [net.build(index, shape) for index in range(net.num_layers)]


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Modules that are made meanwhile have shapes without values."""
    with torch.device(_META), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Draws no random numbers: on the meta device there are none, and torch would import its compiler to say so, which
    takes a core two to three seconds in a process that never compiles."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.randn:
            func = torch.empty
        elif func is Tensor.normal_:
            return args[0]
        return func(*args, **(kwargs or {}))
