"""The precision in which activations are passed on (``transfer_dtype``).

It is the same between two layers of one stage as between two stages: the numbers must not depend on where stages end.
"""

from __future__ import annotations

import torch

from pipeline.config.settings import TransferDtype
from pipeline.methods import Activations


def cast_to_send(activations: Activations, transfer_dtype: TransferDtype) -> Activations:
    """Activations as they are sent: floating-point tensors in the transfer dtype, all others as they are."""
    if transfer_dtype == "fp32":
        return activations
    return {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in activations.items()}


def cast_received(activations: Activations, transfer_dtype: TransferDtype) -> Activations:
    """Activations as a layer takes them: what was cast to be sent in float32 again."""
    if transfer_dtype == "fp32":
        return activations
    return {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in activations.items()}
