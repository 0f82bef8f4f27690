"""What tests of nets need: images, a net's layers, and plain modules that take over a layer's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.nets import Layer, NetConfig, Shape


def images_of(shape: Shape, count: int = 4) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def layers_of(net: NetConfig, shape: Shape, *, seed: int = 0) -> list[Layer]:
    """All layers, each seeded by its index; norms get scales and shifts of their own, which start as 1 and 0."""
    net = net.resolve(shape)
    layers = []
    for index in range(net.num_layers):
        torch.manual_seed(100 * seed + index)
        layer = net.build(index, shape)
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, 0.3)
                nn.init.normal_(module.bias, 0.0, 0.3)
        layers.append(layer)
    return layers


def num_parameters(net: NetConfig, shape: Shape) -> int:
    """Of all layers together; no memory is taken."""
    net = net.resolve(shape)
    with torch.device("meta"):
        layers = [net.build(index, shape) for index in range(net.num_layers)]
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def take_over(plain: nn.Module, layer: nn.Module) -> None:
    """Gives ``plain`` the weights and buffers of ``layer``, in the order in which both were made."""
    theirs, ours = plain.state_dict(), layer.state_dict()
    assert [value.shape for value in theirs.values()] == [value.shape for value in ours.values()]
    plain.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
