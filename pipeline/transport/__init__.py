"""How messages travel between neighbours: between threads, through shared memory, over torch.distributed.

A new transport is one class here, a ``Carrier`` registered in ``CARRIERS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.transport.base import CARRIERS, Carrier, kinds
from pipeline.transport.process_group import Gloo, Nccl
from pipeline.transport.shared_memory import SharedMemory

__all__ = ["CARRIERS", "Carrier", "Gloo", "Nccl", "SharedMemory", "Transport"]

if TYPE_CHECKING:
    Transport = str
else:
    # The command line and saved settings know each by its kind.
    Transport = Literal[("auto", *kinds())]
