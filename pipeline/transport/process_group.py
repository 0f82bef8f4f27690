"""Both ends of a channel between processes, over torch.distributed."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.distributed as dist

from pipeline.errors import PeerLostError
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.transport.base import CARRIERS, Carrier, DeviceKind, Edge, Meeting
from pipeline.transport.buffers import Buffer, HostBuffer, NcclBuffer
from pipeline.transport.channel import Receiver, Sender
from pipeline.transport.message import Message, pack, sequence_of, unpack

_SIOCGIFADDR = 0x8915  # Linux: address of a network interface


class DistSender:
    """Upstream end between processes: one buffer, filled once its last message has left."""

    def __init__(self, name: str, buffer: Buffer, *, stall_timeout: float, clock: Clock) -> None:
        self.name = name
        self._buffer, self._clock, self._timeout = buffer, clock, stall_timeout
        self._works: list[dist.Work] = []
        self._sequence = 0

    def send(self, message: Message) -> None:
        self.close()
        with self._clock.measure(TimeCategory.COPY):
            size = pack(message, self._buffer.header, self._buffer.payload, self._sequence)
            for device in {
                t.device for t in message.tensors.values() if t.is_cuda and not self._buffer.payload.is_cuda
            }:
                torch.cuda.current_stream(device).synchronize()  # the bytes have arrived in host memory
        self._sequence += 1
        with self._clock.measure(TimeCategory.WAIT_OUT), _peer(self.name, "took no message", self._timeout):
            self._works = self._buffer.post_send(size)

    def close(self) -> None:
        with self._clock.measure(TimeCategory.WAIT_OUT), _peer(self.name, "took no message", self._timeout):
            if self._works:
                self._buffer.wait(self._works, self._timeout)
        self._works = []


class DistReceiver:
    """Downstream end between processes, with a receive posted into every free buffer."""

    def __init__(
        self, name: str, buffers: list[Buffer], *, stall_timeout: float, clock: Clock, device: torch.device
    ) -> None:
        self.name = name
        self._buffers, self._clock, self._timeout, self._device = buffers, clock, stall_timeout, device
        self._works: list[list[dist.Work]] = [[] for _ in buffers]
        self._copied: torch.cuda.Event | None = None  # a copy out of the last buffer that may still be under way
        self._sequence = 0
        for slot in range(len(buffers)):
            self._post(slot)

    def _post(self, slot: int) -> None:
        self._buffers[slot].header.zero_()  # so that ``waiting`` sees what has arrived
        with _peer(self.name, "sent nothing", self._timeout):
            self._works[slot] = self._buffers[slot].post_receive()

    def receive(self) -> Message:
        slot = self._sequence % len(self._buffers)
        with self._clock.measure(TimeCategory.WAIT_IN):
            if self._copied is not None:
                self._copied.synchronize()
            if self._sequence > 0:
                self._post((self._sequence - 1) % len(self._buffers))  # the message before is done with
            with _peer(self.name, "sent nothing", self._timeout):
                self._buffers[slot].wait(self._works[slot], self._timeout)
            self._works[slot] = []
        buffer = self._buffers[slot]
        with self._clock.measure(TimeCategory.COPY):
            message = unpack(buffer.header, buffer.payload, self._sequence)
            message.tensors = {name: t.to(self._device, non_blocking=True) for name, t in message.tensors.items()}
            if self._device.type == "cuda" and not buffer.payload.is_cuda:
                self._copied = torch.cuda.current_stream(self._device).record_event()
        self._sequence += 1
        return message

    @property
    def waiting(self) -> int:
        ahead = range(self._sequence, self._sequence + len(self._buffers))
        slots = [(number, number % len(self._buffers)) for number in ahead]
        return sum(bool(self._works[slot]) and sequence_of(self._buffers[slot].header) == n for n, slot in slots)


def _first_sentence(error: RuntimeError) -> str:
    """What gloo says without where in its source it says it, and without its advice."""
    return re.sub(r"^\[[^\]]*\] *", "", str(error).splitlines()[0]).split(". ")[0]


@contextmanager
def _peer(name: str, silence: str, timeout: float) -> Iterator[None]:
    """Turns what torch.distributed raises into an error that names the channel."""
    try:
        yield
    except RuntimeError as error:
        reason = _first_sentence(error)
        if "timed out" in reason.lower() or "timeout" in reason.lower():
            raise PeerLostError(f"{name}: the neighbour {silence} for {timeout:g} s") from error
        raise PeerLostError(f"{name}: the neighbour is gone ({reason})") from error


class Distributed(Carrier):
    """Over torch.distributed: process groups of their own for each edge, made in one order on every rank."""

    def connect(self, meeting: Meeting, edges: Sequence[Edge]) -> dict[Edge, Sender | Receiver | None]:
        if not dist.is_initialized():
            if meeting.address is not None:
                _use_interface_of(meeting.address)
            timeout = timedelta(seconds=meeting.timeout)
            dist.init_process_group(
                "gloo", store=meeting.store, rank=meeting.rank, world_size=meeting.num_ranks, timeout=timeout
            )
        return {edge: self._open(meeting, edge) for edge in edges}

    def _open(self, meeting: Meeting, edge: Edge) -> DistSender | DistReceiver | None:
        """This rank's end of an edge, if it has one. Every rank makes every group, in order."""
        ends, rank, device = [edge.sender, edge.receiver], meeting.rank, meeting.device
        group = _new_group(ends, "gloo", edge.header_name, meeting.timeout)
        make = self.prepare(meeting, edge, group)
        if rank not in ends:
            return None
        _warm(edge, rank, group, torch.device("cpu"))
        sends = rank == edge.sender
        peer, count = (edge.receiver, 1) if sends else (edge.sender, meeting.queue_depth + 1)
        buffers = make(peer, count)
        if sends:
            return DistSender(edge.name, buffers[0], stall_timeout=meeting.timeout, clock=meeting.clock)
        return DistReceiver(edge.name, buffers, stall_timeout=meeting.timeout, clock=meeting.clock, device=device)

    @abstractmethod
    def prepare(self, meeting: Meeting, edge: Edge, group: dist.ProcessGroup) -> Callable[[int, int], list[Buffer]]:
        """Makes what groups an edge needs besides, on every rank. Returns what makes (peer, count) buffers at an end.

        Args:
            group: gloo's, of both ends, which carries headers.
        """


@CARRIERS.register
class Gloo(Distributed):
    """Through host memory, between any two processes."""

    kind: ClassVar[str] = "gloo"
    devices = frozenset[DeviceKind](("cpu", "cuda"))
    auto_place: ClassVar[int | None] = 1

    def prepare(self, meeting: Meeting, edge: Edge, group: dist.ProcessGroup) -> Callable[[int, int], list[Buffer]]:
        pinned = meeting.device.type == "cuda"
        return lambda peer, count: [HostBuffer(edge.payload, peer, group, pinned=pinned) for _ in range(count)]


@CARRIERS.register
class Nccl(Distributed):
    """From GPU to GPU; headers over gloo, so that reading one does not stop the GPU."""

    kind: ClassVar[str] = "nccl"
    devices = frozenset[DeviceKind](("cuda",))
    shares_gpu = False
    auto_place: ClassVar[int | None] = 0
    environment = MappingProxyType(
        {
            # A kernel loaded on first use may wait for the whole context, and a posted receive of NCCL never lets go
            # of it.
            "CUDA_MODULE_LOADING": "EAGER",
            # A posted receive is a kernel that spins until its message comes, and one is always posted. What it
            # occupies is lost to the layers. By default that may be 32 thread blocks; a few carry more than a stage
            # sends.
            "NCCL_MAX_CTAS": "4",
            # Messages leave between two kernels of the layers, not behind all that are queued.
            "TORCH_NCCL_HIGH_PRIORITY": "1",
        }
    )

    def prepare(self, meeting: Meeting, edge: Edge, group: dist.ProcessGroup) -> Callable[[int, int], list[Buffer]]:
        # NCCL counts from the posting of a receive, and as many are posted as messages may be under way.
        timeout = meeting.timeout * (meeting.queue_depth + 2)
        payloads = _new_group([edge.sender, edge.receiver], "nccl", edge.name, timeout)

        def make(peer: int, count: int) -> list[Buffer]:
            _warm(edge, meeting.rank, payloads, meeting.device)
            return [NcclBuffer(edge.payload, peer, payloads, group, meeting.device) for _ in range(count)]

        return make


def _new_group(ends: list[int], backend: str, name: str, timeout: float) -> dist.ProcessGroup:
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
