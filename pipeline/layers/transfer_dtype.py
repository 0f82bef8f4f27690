"""The precision in which activations are passed on (``--wire``).

It is the same between two layers of one stage as between two stages: the numbers must not depend on where stages end.
"""

from __future__ import annotations

import torch

from pipeline.config.settings import Wire
from pipeline.methods import Streams


def narrow(streams: Streams, wire: Wire) -> Streams:
    """Streams as they travel: floating-point tensors in the wire's precision, all others as they are."""
    if wire == "fp32":
        return streams
    return {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in streams.items()}


def widen(streams: Streams, wire: Wire) -> Streams:
    """Streams as a layer takes them: what the wire made narrow in float32 again."""
    if wire == "fp32":
        return streams
    return {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in streams.items()}
