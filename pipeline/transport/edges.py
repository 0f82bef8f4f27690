"""Who is joined to whom, and how: each edge by shared memory or a process group of its own, made in a fixed order."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from pipeline.errors import ResourcesError
from pipeline.telemetry.clock import Clock
from pipeline.transport import Transport
from pipeline.transport.buffers import Buffer, HostBuffer, NcclBuffer
from pipeline.transport.channel import Receiver, Sender
from pipeline.transport.process_group import DistReceiver, DistSender
from pipeline.transport.shared_memory import NOWHERE, Address, Offer, SharedReceiver, SharedSender, attach, create_offer

_SIOCGIFADDR = 0x8915  # Linux: address of a network interface


@dataclass(frozen=True)
class Edge:
    """A channel between two ranks. Stages are ranks 0 … S−1, feeders follow.

    Attributes:
        payload: bytes of the largest message.
        transport: auto: shared memory where both ends are on one machine, else gloo.
    """

    name: str
    sender: int
    receiver: int
    payload: int
    transport: Transport

    @property
    def header_name(self) -> str:
        return f"{self.name} (headers)"


@dataclass(frozen=True)
class Ends:
    """A rank's ends of its edges, in their order: what it takes messages from, and where it sends them."""

    inboxes: tuple[Receiver, ...]
    outboxes: tuple[Sender, ...]


@dataclass(frozen=True)
class EdgeGroups:
    """All edges of a run, and the store at which its workers meet."""

    edges: tuple[Edge, ...]
    num_ranks: int
    host: str
    port: int
    timeout: float
    queue_depth: int

    def join(
        self,
        rank: int,
        device: torch.device,
        clock: Clock,
        store: TCPStore | None = None,
        *,
        address: str | None = None,
    ) -> Ends:
        """Opens the channels of a rank, all ranks at the same time.

        Args:
            store: where the rank opened the store itself; all others connect to it.
            address: this machine's in the network that messages are to take; None: whichever gloo finds.

        Raises:
            ResourcesError: shared memory is asked for, and two ends are not on one machine.
        """
        timeout = timedelta(seconds=self.timeout)
        store = store or TCPStore(self.host, self.port, is_master=False, timeout=timeout)
        shared = self._share(rank, clock, store)
        if len(shared) < len(self.edges):
            if address is not None:
                _use_interface_of(address)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=self.num_ranks, timeout=timeout)
        ends = [shared[edge] if edge in shared else self._connect(edge, rank, device, clock) for edge in self.edges]
        return Ends(
            inboxes=tuple(end for end in ends if isinstance(end, DistReceiver | SharedReceiver)),
            outboxes=tuple(end for end in ends if isinstance(end, DistSender | SharedSender)),
        )

    def _share(self, rank: int, clock: Clock, store: TCPStore) -> dict[Edge, SharedSender | SharedReceiver | None]:
        """The edges that go through shared memory, with this rank's ends. Every rank learns of all of them."""
        edges = [edge for edge in self.edges if edge.transport in ("auto", "shm")]
        offers: dict[Edge, Offer | None] = {}
        for edge in edges:
            if rank == edge.sender:
                offer = offers[edge] = create_offer(edge.payload, self.queue_depth)
                store.set(f"{edge.name}: offer", (offer.address if offer is not None else NOWHERE).pack())
        receivers: dict[Edge, SharedReceiver | None] = {}
        for edge in edges:
            if rank == edge.receiver:
                address = Address.unpack(store.get(f"{edge.name}: offer").decode())
                receiver = receivers[edge] = attach(
                    address, edge.name, edge.payload, self.queue_depth, stall_timeout=self.timeout, clock=clock
                )
                store.set(f"{edge.name}: answer", "no" if receiver is None else "taken")
        shared: dict[Edge, SharedSender | SharedReceiver | None] = {}
        for edge in edges:
            taken, mine = store.get(f"{edge.name}: answer") == b"taken", offers.get(edge)
            if taken and mine is not None:
                shared[edge] = mine.accept(edge.name, stall_timeout=self.timeout, clock=clock)
            elif taken:
                shared[edge] = receivers.get(edge)
            elif edge.transport == "shm":
                raise ResourcesError(
                    f"{edge.name}: `transport` shm needs both ends on one Linux machine, in one container, as one "
                    "user. Use `transport` auto, which takes gloo where that is not so."
                )
            elif mine is not None:
                mine.close()
        return shared

    def _connect(self, edge: Edge, rank: int, device: torch.device, clock: Clock) -> DistSender | DistReceiver | None:
        """This rank's end of an edge over torch.distributed, if it has one. Every rank makes every group, in order."""
        ends = [edge.sender, edge.receiver]
        group, payload_group = self._group(ends, "gloo", edge.header_name), None
        if edge.transport == "nccl":
            payload_group = self._group(ends, "nccl", edge.name)
        if rank not in ends:
            return None
        sends = rank == edge.sender
        peer, count = (edge.receiver, 1) if sends else (edge.sender, self.queue_depth + 1)
        _warm(edge, rank, group, torch.device("cpu"))
        buffers: list[Buffer]
        if payload_group is None:
            buffers = [HostBuffer(edge.payload, peer, group, pinned=device.type == "cuda") for _ in range(count)]
        else:
            _warm(edge, rank, payload_group, device)
            buffers = [NcclBuffer(edge.payload, peer, payload_group, group, device) for _ in range(count)]
        if sends:
            return DistSender(edge.name, buffers[0], stall_timeout=self.timeout, clock=clock)
        return DistReceiver(edge.name, buffers, stall_timeout=self.timeout, clock=clock, device=device)

    def _group(self, ends: list[int], backend: str, name: str) -> dist.ProcessGroup:
        # NCCL counts from the posting of a receive, and as many are posted as messages may be under way.
        timeout = self.timeout * (self.queue_depth + 2 if backend == "nccl" else 1)
        group: dist.ProcessGroup = dist.new_group(
            ends, timeout=timedelta(seconds=timeout), backend=backend, group_desc=name
        )
        return group


def _use_interface_of(address: str) -> None:
    """Has gloo and NCCL use the network that an address is of, unless told otherwise.

    gloo takes the host name's address, which on many systems is the loopback's: other nodes cannot reach that.
    """
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an address
        if socket.inet_ntoa(found[20:24]) == address:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
            return


def _warm(edge: Edge, rank: int, group: dist.ProcessGroup, device: torch.device) -> None:
    """Sends one byte, so that connections and communicators exist before the first batch is timed."""
    byte = torch.zeros(1, dtype=torch.uint8, device=device)
    if rank == edge.sender:
        dist.send(byte, edge.receiver, group=group)
    else:
        dist.recv(byte, edge.sender, group=group)
