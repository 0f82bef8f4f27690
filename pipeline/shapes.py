"""What a net's sizes are, from its layers on the meta device: without memory, and a dry run without arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.feed import IMAGES
from pipeline.messages import IDS, LABELS, Kind, Message, message_bytes
from pipeline.nets import Net, Shape
from pipeline.nets.base import Layer
from pipeline.rules import Context, Place, Streams
from pipeline.spec import RunSpec
from pipeline.wire import narrow, widen

_META = torch.device("meta")


def edge_bytes(spec: RunSpec) -> list[int]:
    """Largest payload on each edge in bytes: from the feeders to stage 0, from stage 0 to stage 1, and so on.

    A training batch has every view, an evaluation batch those that validation sees; a method may send other streams in
    one than in the other.
    """
    batch = spec.settings.train.batch_size
    beside = {name: torch.empty(batch, dtype=torch.int64, device=_META) for name in (LABELS, IDS)}
    images = torch.empty(batch, *spec.shape, dtype=torch.uint8, device=_META)
    sizes = [message_bytes(Message(Kind.TRAIN, tensors={IMAGES: images, **beside}))]
    trained, evaluated = (_streams(spec, training, beside[LABELS]) for training in (True, False))
    return sizes + [
        max(message_bytes(Message(Kind.TRAIN, tensors={**sent, **beside})) for sent in either)
        for either in zip(trained, evaluated, strict=True)
    ]


def layer_features(net: Net, shape: Shape) -> list[int]:
    """Length C of each layer's feature vectors."""
    return [layer.features for layer in without_values(net, shape)]


def num_parameters(net: Net, shape: Shape) -> int:
    """Parameters of all layers, without readouts."""
    return sum(p.numel() for layer in without_values(net, shape) for p in layer.parameters())


def without_values(net: Net, shape: Shape) -> list[Layer]:
    """The net's layers on the meta device: shapes without values, in milliseconds."""
    with torch.device(_META), _Undrawn():
        return [net.build(index, shape) for index in range(net.num_layers)]


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


def _streams(spec: RunSpec, training: bool, labels: Tensor) -> list[Streams]:
    """What each stage but the last passes on."""
    context = Context(labels=labels, place=Place(training=training))
    ends = {layers[-1] for layers in spec.stages[:-1]}
    wire = spec.settings.pipeline.wire
    sent = []
    with torch.device(_META), torch.no_grad():
        layers = [spec.net.build(index, spec.shape).eval() for index in range(spec.num_layers)]
        rules = [spec.settings.method.build(i, layer, spec.outline) for i, layer in enumerate(layers)]
        num_views = rules[0].num_views
        views = num_views if training else max(1, spec.evaluation_views(Kind.VALIDATE, num_views))
        streams = rules[0].enter(torch.empty(views * len(labels), *spec.shape), context)
        for index, (layer, rule) in enumerate(zip(layers, rules, strict=True)):
            passed = narrow(rule.pass_on(layer, rule.run(layer, streams, context), context), wire)
            streams = widen(passed, wire)
            if index in ends:
                sent.append(passed)
    return sent
