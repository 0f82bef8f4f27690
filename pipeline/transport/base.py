"""What a transport is to the rest of the system: between what it works, and how it joins two ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch.distributed import Store  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from pipeline.registry import Registered, Registry
from pipeline.telemetry.clock import Clock
from pipeline.transport.channel import ReceivingEnd, Sender


@dataclass(frozen=True)
class Edge:
    """A channel between two ranks. Stages are ranks 0 … S−1, then come feeders, then the owner of a shared state.

    Attributes:
        payload: bytes of the largest message.
        transport: kind of its carrier, or auto: the first of those that auto takes by which both ends can be joined.
        depth: messages that may wait without the sender's waiting; None: as many as the run's queues hold.
        patient: whether its receiver waits for a message however long that takes, as long as the sender is there.
    """

    name: str
    sender: int
    receiver: int
    payload: int
    transport: str
    depth: int | None = None
    patient: bool = False

    @property
    def header_name(self) -> str:
        return f"{self.name} (headers)"


@dataclass(frozen=True)
class Meeting:
    """What a rank has when edges are opened, by all ranks at the same time.

    Attributes:
        store: at which all ranks meet, and nobody else.
        secret: what the ranks know, and nobody else.
        device: this rank's.
        timeout: seconds without a message after which a neighbour counts as stuck.
        queue_depth: messages that may wait on an edge.
        address: this machine's in the network that messages are to take; None: whichever the carrier finds.
    """

    rank: int
    num_ranks: int
    store: Store
    secret: bytes
    device: torch.device
    clock: Clock
    timeout: float
    queue_depth: int
    address: str | None = None

    def depth(self, edge: Edge) -> int:
        """Messages that may wait on an edge."""
        return self.queue_depth if edge.depth is None else edge.depth

    def patience(self, edge: Edge) -> float:
        """Seconds without a message after which an edge's sender counts as stuck."""
        return math.inf if edge.patient else self.timeout


DeviceKind = Literal["cpu", "cuda"]


class Carrier(ABC, Registered):
    """A way that messages take from one process to another; its ``kind`` is the value of the setting ``transport``.

    Attributes:
        devices: kinds of device that both ends may be on.
        one_machine: both ends have to be on the same one.
        shares_gpu: both ends may be on one GPU.
        auto_place: of those that ``transport`` auto takes where they work, the lowest is tried first; None: auto
            leaves this one out.
        needs: what both ends must have, for the message where they do not.
        environment: variables that a stage's process on a GPU has; what the launching process has set stays.
    """

    devices: ClassVar[frozenset[DeviceKind]]
    one_machine: ClassVar[bool] = False
    shares_gpu: ClassVar[bool] = True
    auto_place: ClassVar[int | None] = None
    needs: ClassVar[str] = "a network between both ends"
    environment: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @abstractmethod
    def connect(self, meeting: Meeting, edges: Sequence[Edge]) -> dict[Edge, Sender | ReceivingEnd | None]:
        """Opens these edges. Every rank calls it at the same time with the same ones, also those between others.

        Returns those that could be opened, the same on every rank, each with this rank's end: None where it has none.
        """

    @classmethod
    def leave(cls) -> None:
        """Lets go of what a process has of its edges beside their ends, so that it may open others."""


CARRIERS: Registry[Carrier] = Registry("transport")
"""Every transport by its kind."""


def between(device: DeviceKind) -> list[type[Carrier]]:
    """The transports between two devices of this kind: those that auto tries, in this order, then all others."""
    return [carrier for carrier in in_turn() if device in carrier.devices]


def automatic(device: DeviceKind) -> list[type[Carrier]]:
    """What auto tries between two devices of this kind, in this order."""
    return [carrier for carrier in between(device) if carrier.auto_place is not None]


def kinds() -> list[str]:
    """The name of every transport, those between CPUs first."""
    return sorted((carrier.kind for carrier in CARRIERS), key=lambda kind: ("cpu" not in CARRIERS[kind].devices, kind))


def in_turn() -> list[type[Carrier]]:
    """Every transport, in the order of ``Carrier.auto_place``."""
    return sorted(CARRIERS, key=lambda carrier: math.inf if carrier.auto_place is None else carrier.auto_place)
