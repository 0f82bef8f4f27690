"""How large messages between stages can get: a dry run of the net on the meta device, without memory or arithmetic."""

from __future__ import annotations

import torch

from pipeline.feed import IMAGES
from pipeline.messages import IDS, LABELS, Kind, Message, message_bytes
from pipeline.spec import RunSpec


def edge_bytes(spec: RunSpec) -> list[int]:
    """Largest payload on each edge in bytes: from the feeders to stage 0, from stage 0 to stage 1, and so on.

    Training batches are the largest: all views of a whole batch. Validation and test send one view.
    """
    settings = spec.settings
    batch = settings.train.batch_size
    meta = torch.device("meta")
    beside = {name: torch.empty(batch, dtype=torch.int64, device=meta) for name in (LABELS, IDS)}
    images = torch.empty(batch, *spec.shape, dtype=torch.uint8, device=meta)
    sizes = [message_bytes(Message(Kind.TRAIN, tensors={IMAGES: images, **beside}))]

    rules = [settings.method.build(index, spec.num_layers) for index in range(spec.num_layers)]
    streams = rules[0].enter(torch.empty(rules[0].num_views * batch, *spec.shape, device=meta))
    ends = {layers[-1] for layers in spec.stages[:-1]}
    with torch.device(meta), torch.no_grad():
        for index, rule in enumerate(rules):
            streams = rule.pass_on(rule.forward(settings.net.build(index, spec.shape), streams))
            if index in ends:
                sizes.append(message_bytes(Message(Kind.TRAIN, tensors={**streams, **beside})))
    return sizes
