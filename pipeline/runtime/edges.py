"""A run's edges: who sends to whom, and how large a message can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.config.run_spec import RunSpec
from pipeline.kind import Kind
from pipeline.layers.forward import Arithmetic, LayerForward
from pipeline.layers.joined import JoinedFeatures
from pipeline.methods import Activations, BatchPosition, Rule, StepContext
from pipeline.nets import Layer
from pipeline.runtime.feeder import IMAGE_IDS, IMAGES
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
    fed = {IMAGES: images, **beside}
    if spec.wants_images_on_device:
        fed[IMAGE_IDS] = beside[IDS]
    sizes = [message_bytes(Message(Kind.TRAIN, tensors=fed))]
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
    ends = {layers[-1] for layers in spec.stages[:-1]}
    arithmetic = Arithmetic(transfer_dtype=spec.settings.pipeline.transfer_dtype)  # fp32 takes the most room
    return [
        passed
        for index, (_, passed) in enumerate(dry_run(spec, labels, arithmetic, training=training))
        if index in ends
    ]


def dry_run(
    spec: RunSpec, labels: Tensor, arithmetic: Arithmetic, *, training: bool
) -> Iterator[tuple[Activations, Activations]]:
    """What each layer takes and what it passes on of a batch with these labels, on their device: by an untrained net.

    On the meta device these are shapes alone; elsewhere images are random.
    """
    device = labels.device
    context = StepContext(labels=labels, where=BatchPosition(training=training))
    for_readouts = spec.settings.readout.see(training=training)

    def built(index: int) -> tuple[Layer, Rule]:
        layer = spec.net.build(index, spec.shape).to(device).eval()
        return layer, spec.settings.method.build(index, layer, spec.model_info).to(device).eval()

    with torch.device(device), torch.no_grad():
        layer, rule = built(0)
        views = rule.num_views if training else max(1, spec.evaluation_views(Kind.VALIDATE, rule.num_views))
        images = torch.empty(views * len(labels), *spec.shape)
        if device != _META:  # there torch would import its compiler to say that it draws nothing
            images.normal_(generator=torch.Generator(device).manual_seed(0))
        activations = rule.make_inputs(images, context)
    for index in range(spec.num_layers):
        with torch.device(device), torch.no_grad():
            layer, rule = built(index) if index else (layer, rule)
            joined = JoinedFeatures(spec.settings.method, spec.net, spec.shape, index, layer, spec.readouts)
            forward = LayerForward(layer, rule, joined, arithmetic)
            passed = forward.to_send(forward.outputs(activations, context), context, for_readouts=for_readouts)
        yield activations, passed
        activations = passed
