"""Who is joined to whom, and how: each edge by a transport that can, in a fixed order."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch.distributed import Store  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from pipeline.errors import ResourcesError
from pipeline.telemetry.clock import Clock
from pipeline.transport.base import CARRIERS, Carrier, Edge, Meeting, automatic, in_turn
from pipeline.transport.channel import ReceivingEnd, Sender


@dataclass(frozen=True)
class Ends:
    """A rank's ends of its edges, in their order: what it takes messages from, and where it sends them."""

    inboxes: tuple[ReceivingEnd, ...] = ()
    outboxes: tuple[Sender, ...] = ()

    def break_off(self) -> None:
        """Lets go of every edge at once, so that nobody waits at their other ends and the process may open new ones."""
        for inbox in self.inboxes:
            inbox.break_off()
        for outbox in self.outboxes:
            outbox.break_off()
        leave()


def leave() -> None:
    """Lets go of what this process has of all its edges beside their ends: connections that nothing uses end."""
    for carrier in in_turn():
        carrier.leave()


@dataclass(frozen=True)
class EdgeGroups:
    """All edges of a run.

    Attributes:
        timeout: seconds without a message after which a neighbour counts as stuck.
        queue_depth: messages that may wait on an edge.
        secret: by which the ranks know each other. It must reach all of them, and nobody else.
    """

    edges: tuple[Edge, ...]
    num_ranks: int
    timeout: float
    queue_depth: int
    secret: bytes = field(default_factory=partial(secrets.token_bytes, 32), repr=False)

    def join(
        self,
        rank: int,
        device: torch.device,
        clock: Clock,
        store: Store,
        *,
        address: str | None = None,
    ) -> Ends:
        """Opens the channels of a rank, all ranks at the same time.

        Args:
            store: at which all ranks meet, and nobody else. Nothing of it is needed any more afterwards.
            address: this machine's in the network that messages are to take; None: whichever gloo finds.

        Raises:
            ResourcesError: two ends do not have what the transport between them needs.
            PeerLostError: what is at the other end of an edge is not of this run, or does not answer in time.
        """
        meeting = Meeting(
            rank=rank,
            num_ranks=self.num_ranks,
            store=store,
            secret=self.secret,
            device=device,
            clock=clock,
            timeout=self.timeout,
            queue_depth=self.queue_depth,
            address=address,
        )
        joined: dict[Edge, Sender | ReceivingEnd | None] = {}
        for carrier in in_turn():
            left = [edge for edge in self.edges if edge not in joined and carrier in _tried(edge)]
            if left:
                joined |= carrier().connect(meeting, left)
        for edge in self.edges:
            if edge not in joined:
                last = _tried(edge)[-1]
                raise ResourcesError(
                    f"{edge.name}: `transport` {last.kind} needs {last.needs}. Use `transport` auto, which takes gloo "
                    "where that is not so."
                )
        return Ends(
            inboxes=tuple(cast("ReceivingEnd", joined[edge]) for edge in self.edges if edge.receiver == rank),
            outboxes=tuple(cast("Sender", joined[edge]) for edge in self.edges if edge.sender == rank),
        )


def _tried(edge: Edge) -> list[type[Carrier]]:
    """The transports by which an edge may be joined. "auto" is for CPUs: between GPUs it is resolved before."""
    return automatic("cpu") if edge.transport == "auto" else [CARRIERS[edge.transport]]
