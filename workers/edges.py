"""Who is joined to whom: each edge of the pipeline has a process group of its own, made and warmed in a fixed order."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from datetime import timedelta

import ray
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from pipeline.buffers import Buffer, HostBuffer, NcclBuffer, SharedBuffer
from pipeline.channel import DistReceiver, DistSender
from pipeline.errors import ResourcesError
from pipeline.metrics import Clock
from pipeline.settings import Transport
from pipeline.shapes import edge_bytes
from pipeline.shared import Address, SharedSlots, found, offered
from pipeline.spec import RunSpec

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
    """A rank's ends of its edges: what it takes messages from, in the order of the edges, and where it sends them."""

    inboxes: tuple[DistReceiver, ...]
    outbox: DistSender | None


@dataclass(frozen=True)
class EdgeGroups:
    """All edges of a run, and the store at which its workers meet."""

    edges: tuple[Edge, ...]
    num_ranks: int
    host: str
    port: int
    timeout: float
    queue_depth: int

    def join(self, rank: int, device: torch.device, clock: Clock, store: TCPStore | None = None) -> Ends:
        """Makes every edge's group, in the same order on every rank, and opens the channels of this one.

        Raises:
            ResourcesError: shared memory is asked for, and the two ends are not on one machine.
        """
        timeout = timedelta(seconds=self.timeout)
        _use_interface_of(ray.util.get_node_ip_address())
        store = store or TCPStore(self.host, self.port, is_master=False, timeout=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=self.num_ranks, timeout=timeout)
        buffers = {}
        for edge in self.edges:
            ends = [edge.sender, edge.receiver]
            group, payload_group = self._group(ends, "gloo", edge.header_name), None
            if edge.transport == "nccl":
                payload_group = self._group(ends, "nccl", edge.name)
            if rank in ends:
                buffers[edge] = self._buffers(edge, rank, device, group, payload_group)
        inboxes, outbox = [], None
        for edge, memory in buffers.items():
            if rank == edge.receiver:
                inboxes.append(DistReceiver(edge.name, memory, stall_timeout=self.timeout, clock=clock, device=device))
            else:
                outbox = DistSender(edge.name, memory[0], stall_timeout=self.timeout, clock=clock)
        return Ends(tuple(inboxes), outbox)

    def _group(self, ends: list[int], backend: str, name: str) -> dist.ProcessGroup:
        # NCCL counts from the posting of a receive, and as many are posted as messages may be under way.
        patience = self.timeout * (self.queue_depth + 2 if backend == "nccl" else 1)
        group: dist.ProcessGroup = dist.new_group(
            ends, timeout=timedelta(seconds=patience), backend=backend, group_desc=name
        )
        return group

    def _buffers(
        self,
        edge: Edge,
        rank: int,
        device: torch.device,
        group: dist.ProcessGroup,
        payload_group: dist.ProcessGroup | None,
    ) -> list[Buffer]:
        """The memory of one end. On return the connections of the edge exist, so that no batch waits for them."""
        sends = rank == edge.sender
        peer, count = (edge.receiver, 1) if sends else (edge.sender, self.queue_depth + 1)
        slots = None
        if edge.transport in ("auto", "shm"):
            slots = _share(edge, group, sends=sends, count=self.queue_depth + 2)
        else:
            _warm(edge, rank, group, torch.device("cpu"))
        if slots is not None:
            return [SharedBuffer(slots, peer, group, sends=sends) for _ in range(count)]
        if payload_group is None:
            return [HostBuffer(edge.payload, peer, group, pinned=device.type == "cuda") for _ in range(count)]
        _warm(edge, rank, payload_group, device)
        return [NcclBuffer(edge.payload, peer, payload_group, group, device) for _ in range(count)]


def _share(edge: Edge, group: dist.ProcessGroup, *, sends: bool, count: int) -> SharedSlots | None:
    """Slots that both ends see, or None at both: the sender offers them, the receiver looks and answers.

    Raises:
        ResourcesError: None, and the edge must have them.
    """
    offer, answer = torch.zeros(Address.BYTES, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    slots: SharedSlots | None
    if sends:
        with offered(edge.payload, count) as (slots, address):
            offer.copy_(torch.frombuffer(bytearray(address.pack()), dtype=torch.uint8))
            dist.send(offer, edge.receiver, group=group)
            dist.recv(answer, edge.receiver, group=group)
        slots = slots if answer.item() else None
    else:
        dist.recv(offer, edge.sender, group=group)
        slots = found(Address.unpack(bytes(offer.numpy())), edge.payload, count)
        dist.send(answer.fill_(slots is not None), edge.sender, group=group)
    if slots is None and edge.transport == "shm":
        raise ResourcesError(
            f"{edge.name}: --transport shm needs both ends on one Linux machine, in one container, as one user. "
            "Use --transport auto, which takes gloo where that is not so."
        )
    return slots


def _use_interface_of(address: str) -> None:
    """Has gloo and NCCL use the network that Ray uses, unless told otherwise.

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


def edges_of(spec: RunSpec) -> tuple[Edge, ...]:
    """Every edge: the feeders' into stage 1, then from stage to stage."""
    sizes = edge_bytes(spec)
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
