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

from pipeline.shapes import edge_bytes
from pipeline.spec import RunSpec

_SIOCGIFADDR = 0x8915  # Linux: address of a network interface


@dataclass(frozen=True)
class Edge:
    """A channel between two ranks. Stages are ranks 0 … S−1, feeders follow."""

    name: str
    sender: int
    receiver: int
    payload: int
    nccl: bool

    @property
    def header_name(self) -> str:
        return f"{self.name} (headers)"


@dataclass(frozen=True)
class EdgeGroups:
    """All edges of a run, and the store at which its workers meet."""

    edges: tuple[Edge, ...]
    num_ranks: int
    host: str
    port: int
    timeout: float
    queue_depth: int

    def join(self, rank: int, device: torch.device, store: TCPStore | None = None) -> dict[str, dist.ProcessGroup]:
        """Makes every edge's group, in the same order on every rank; returns this rank's by name."""
        timeout = timedelta(seconds=self.timeout)
        _use_interface_of(ray.util.get_node_ip_address())
        store = store or TCPStore(self.host, self.port, is_master=False, timeout=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=self.num_ranks, timeout=timeout)
        groups = {}
        for edge in self.edges:
            ends = [edge.sender, edge.receiver]
            kinds = [(edge.header_name, "gloo"), (edge.name, "nccl")] if edge.nccl else [(edge.name, "gloo")]
            for name, backend in kinds:
                # NCCL counts from the posting of a receive, and as many are posted as messages may be under way.
                patience = timeout * (self.queue_depth + 2) if backend == "nccl" else timeout
                group = dist.new_group(ends, timeout=patience, backend=backend, group_desc=name)
                if rank in ends:
                    groups[name] = group
                    _warm(edge, rank, group, device if backend == "nccl" else torch.device("cpu"))
        return groups


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
    nccl = spec.settings.pipeline.transport == "nccl"
    stages = spec.num_stages
    feeds = [
        Edge(f"feeder {number + 1} → stage 1", stages + number, 0, sizes[0], nccl=False)
        for number in range(spec.settings.pipeline.feeders)
    ]
    between = [
        Edge(f"stage {stage + 1} → stage {stage + 2}", stage, stage + 1, sizes[stage + 1], nccl=nccl)
        for stage in range(stages - 1)
    ]
    return (*feeds, *between)
