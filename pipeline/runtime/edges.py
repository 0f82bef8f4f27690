"""A run's edges: who sends to whom, and how large a message can be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.kind import Kind
from pipeline.layers.forward import Arithmetic, LayerForward
from pipeline.layers.joined import JoinedFeatures
from pipeline.methods import Activations, BatchPosition, StepContext
from pipeline.runtime.feeder import IMAGES
from pipeline.transport import Transport
from pipeline.transport.base import Edge
from pipeline.transport.message import IDS, LABELS, Message, message_bytes

_META = torch.device("meta")


def edge_bytes(spec: RunSpec) -> list[int]:
    """Largest payload on each edge in bytes: from the feeders to stage 0, from stage 0 to stage 1, and so on.

    A training batch has every view, an evaluation batch those that validation sees; a method may send other tensors
    in one than in the other.
    """
    batch = spec.settings.train.batch_size
    beside = {name: torch.empty(batch, dtype=torch.int64, device=_META) for name in (LABELS, IDS)}
    images = torch.empty(batch, *spec.shape, dtype=torch.uint8, device=_META)
    sizes = [message_bytes(Message(Kind.TRAIN, tensors={IMAGES: images, **beside}))]
    trained, evaluated = (_activations(spec, training, beside[LABELS]) for training in (True, False))
    return sizes + [
        max(message_bytes(Message(Kind.TRAIN, tensors={**sent, **beside})) for sent in either)
        for either in zip(trained, evaluated, strict=True)
    ]


def edges_of(spec: RunSpec, sizes: Sequence[int]) -> tuple[Edge, ...]:
    """Every edge: the feeders' into stage 1, then from stage to stage. ``sizes``: what ``edge_bytes`` gives."""
    transport, stages = spec.settings.pipeline.transport, spec.num_stages
    # A copy to a GPU does not stop the host where it comes from pinned memory, which is no shared one.
    feeding: Transport = "gloo" if spec.device == "cuda" else transport
    feeds = [
        Edge(f"feeder {number + 1} → stage 1", stages + number, 0, sizes[0], feeding)
        for number in range(spec.settings.pipeline.feeders)
    ]
    between = [
        Edge(f"stage {stage + 1} → stage {stage + 2}", stage, stage + 1, sizes[stage + 1], transport)
        for stage in range(stages - 1)
    ]
    return (*feeds, *between)


def _activations(spec: RunSpec, training: bool, labels: Tensor) -> list[Activations]:
    """What each stage but the last passes on."""
    context = StepContext(labels=labels, where=BatchPosition(training=training))
    ends = {layers[-1] for layers in spec.stages[:-1]}
    for_readouts = spec.settings.readout.see(training=training)
    arithmetic = Arithmetic(transfer_dtype=spec.settings.pipeline.transfer_dtype)  # fp32 takes the most room
    sent = []
    with torch.device(_META), torch.no_grad():
        layers = [spec.net.build(index, spec.shape).eval() for index in range(spec.num_layers)]
        rules = [spec.settings.method.build(i, layer, spec.model_info) for i, layer in enumerate(layers)]
        num_views = rules[0].num_views
        views = num_views if training else max(1, spec.evaluation_views(Kind.VALIDATE, num_views))
        activations = rules[0].make_inputs(torch.empty(views * len(labels), *spec.shape), context)
        for index, (layer, rule) in enumerate(zip(layers, rules, strict=True)):
            joined = JoinedFeatures(spec.settings.method, spec.net, spec.shape, index, layer, spec.readouts)
            forward = LayerForward(layer, rule, joined, arithmetic)
            activations = forward.to_send(forward.outputs(activations, context), context, for_readouts=for_readouts)
            if index in ends:
                sent.append(activations)
    return sent
