"""Both ends of a channel between processes, over torch.distributed."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import ClassVar

import torch
import torch.distributed as dist

from pipeline.errors import PeerLostError
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.transport.base import CARRIERS, Carrier, DeviceKind, Edge, Meeting
from pipeline.transport.buffers import Buffer, HostBuffer, NcclBuffer
from pipeline.transport.channel import ReceivingEnd, Sender
from pipeline.transport.membership import check_member
from pipeline.transport.message import Message, pack, sequence_of, unpack

_SIOCGIFADDR = 0x8915  # Linux: address of a network interface


class DistSender:
    """Upstream end between processes: one buffer, filled once its last message has left."""

    def __init__(self, name: str, buffer: Buffer, *, stall_timeout: float, clock: Clock) -> None:
        self.name = name
        self._buffer, self._clock, self._timeout = buffer, clock, stall_timeout
        self._sending = False
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
        with self._clock.measure(TimeCategory.WAIT_OUT), self._peer():
            self._buffer.post_send(size)
        self._sending = True

    def close(self) -> None:
        with self._clock.measure(TimeCategory.WAIT_OUT), self._peer():
            if self._sending:
                self._buffer.wait_sent(self._timeout)
        self._sending = False

    def break_off(self) -> None:
        """What is being sent is not waited for. The connection ends once the process groups do, too
        (``Distributed.leave``)."""
        self._sending = False
        self._buffer.abandon()

    def _peer(self) -> AbstractContextManager[None]:
        return _peer(self.name, "took no message", self._timeout, [self._buffer])


class DistReceiver:
    """Downstream end between processes, with a receive posted into every free buffer."""

    def __init__(
        self, name: str, buffers: list[Buffer], *, stall_timeout: float, clock: Clock, device: torch.device
    ) -> None:
        self.name = name
        self._buffers, self._clock, self._timeout, self._device = buffers, clock, stall_timeout, device
        self._posted = [False] * len(buffers)
        self._copied: torch.cuda.Event | None = None  # a copy out of the last buffer that may still be under way
        self._sequence = 0
        for slot in range(len(buffers)):
            self._post(slot)

    def _post(self, slot: int) -> None:
        self._buffers[slot].header.zero_()  # so that it shows when the next message has arrived
        with self._peer():
            self._buffers[slot].post_receive()
        self._posted[slot] = True

    def receive(self) -> Message:
        slot = self._sequence % len(self._buffers)
        with self._clock.measure(TimeCategory.WAIT_IN):
            if self._copied is not None:
                self._copied.synchronize()
            if self._sequence > 0:
                self._post((self._sequence - 1) % len(self._buffers))  # the message before is done with
            with self._peer():
                self._buffers[slot].wait_received(self._timeout)
                for number in self._arrived(self._sequence + 1):
                    self._buffers[number % len(self._buffers)].take_payload(self._timeout)
            self._posted[slot] = False
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
        return sum(1 for _ in self._arrived(self._sequence))

    def _arrived(self, first: int) -> Iterator[int]:
        """The messages from this one on whose headers have begun to arrive, in order."""
        for number in range(first, self._sequence + len(self._buffers)):
            slot = number % len(self._buffers)
            if not self._posted[slot] or sequence_of(self._buffers[slot].header) != number:
                return
            yield number

    def break_off(self) -> None:
        """As ``DistSender.break_off``."""
        for buffer in self._buffers:
            buffer.abandon()

    def _peer(self) -> AbstractContextManager[None]:
        return _peer(self.name, "sent nothing", self._timeout, self._buffers)


def _first_sentence(error: Exception) -> str:
    """What gloo says without where in its source it says it, and without its advice."""
    return re.sub(r"^\[[^\]]*\] *", "", str(error).splitlines()[0]).split(". ")[0]


@contextmanager
def _peer(name: str, silence: str, timeout: float, buffers: Sequence[Buffer]) -> Iterator[None]:
    """Turns what torch.distributed raises into an error that names the channel, and lets go of the buffers."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # the latter where this process has left its groups meanwhile
        for buffer in buffers:
            buffer.abandon()
        reason = _first_sentence(error)
        if "timed out" in reason.lower() or "timeout" in reason.lower():
            raise PeerLostError(f"{name}: the neighbour {silence} for {timeout:g} s") from error
        raise PeerLostError(f"{name}: the neighbour is gone ({reason})") from error


_MakeBuffers = Callable[[int, int], list[Buffer]]


class Distributed(Carrier):
    """Over torch.distributed: process groups of their own for each edge, made in one order on every rank.

    All edges' connections are made and tried before anything is posted on one of them: what makes a communicator may
    wait for the whole device.
    """

    def connect(self, meeting: Meeting, edges: Sequence[Edge]) -> dict[Edge, Sender | ReceivingEnd | None]:
        if not dist.is_initialized():
            if meeting.address is not None:
                _use_interface_of(meeting.address)
            timeout = timedelta(seconds=meeting.timeout)
            dist.init_process_group(
                "gloo", store=meeting.store, rank=meeting.rank, world_size=meeting.num_ranks, timeout=timeout
            )
        makers = {}
        for edge in edges:
            group = _new_group([edge.sender, edge.receiver], "gloo", edge.header_name, meeting.timeout)
            if meeting.rank in (edge.sender, edge.receiver):
                check_member(edge, meeting.rank, group, meeting.secret)
            makers[edge] = self.prepare(meeting, edge, group)
        if meeting.device.type == "cuda":
            torch.cuda.synchronize(meeting.device)
        return {edge: self._end(meeting, edge, make) for edge, make in makers.items()}

    @classmethod
    def leave(cls) -> None:
        """Ends all process groups of this process, and with them their connections, which shows at their other ends.

        gloo has no other way to end one: a group's connections end with its last reference. NCCL's are gone by then:
        each end has aborted its own. To shut one down would wait for a peer that may be dead.
        """
        if dist.is_initialized():
            dist.destroy_process_group()

    def _end(self, meeting: Meeting, edge: Edge, make: _MakeBuffers) -> DistSender | DistReceiver | None:
        """This rank's end of an edge, if it has one."""
        if meeting.rank == edge.sender:
            (buffer,) = make(edge.receiver, 1)
            return DistSender(edge.name, buffer, stall_timeout=meeting.timeout, clock=meeting.clock)
        if meeting.rank == edge.receiver:
            buffers = make(edge.sender, meeting.depth(edge) + 1)
            patience = meeting.patience(edge)
            return DistReceiver(edge.name, buffers, stall_timeout=patience, clock=meeting.clock, device=meeting.device)
        return None

    @abstractmethod
    def prepare(self, meeting: Meeting, edge: Edge, group: dist.ProcessGroup) -> _MakeBuffers:
        """Makes what groups an edge needs besides, on every rank, and tries them on both ends. Returns what makes
        (peer, count) buffers at an end.

        Args:
            group: gloo's, of both ends, which carries headers.
        """


@CARRIERS.register
class Gloo(Distributed):
    """Through host memory, between any two processes."""

    kind: ClassVar[str] = "gloo"
    devices = frozenset[DeviceKind](("cpu", "cuda"))
    auto_place: ClassVar[int | None] = 1

    def prepare(self, meeting: Meeting, edge: Edge, group: dist.ProcessGroup) -> _MakeBuffers:
        pinned = meeting.device.type == "cuda"
        return lambda peer, count: [HostBuffer(edge.payload, peer, group, pinned=pinned) for _ in range(count)]


@CARRIERS.register
class Nccl(Distributed):
    """From GPU to GPU; headers over gloo, so that reading one does not stop the GPU."""

    kind: ClassVar[str] = "nccl"
    devices = frozenset[DeviceKind](("cuda",))
    shares_gpu = False
    payloads_over: ClassVar[str] = "nccl"
    auto_place: ClassVar[int | None] = 0
    environment = MappingProxyType(
        {
            # A receive is a kernel that spins until the sender's GPU comes to the message. What it occupies is lost to
            # the layers. By default that may be 32 thread blocks; a few carry more than a stage sends.
            "NCCL_MAX_CTAS": "4",
            # Messages leave between two kernels of the layers, not behind all that are queued.
            "TORCH_NCCL_HIGH_PRIORITY": "1",
            # A neighbour's death shows at the headers. PyTorch's watchdog would end this process for it, before its
            # weights are fetched, and blur who died first.
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
        }
    )

    def prepare(self, meeting: Meeting, edge: Edge, group: dist.ProcessGroup) -> _MakeBuffers:
        payloads = _new_group([edge.sender, edge.receiver], self.payloads_over, edge.name, meeting.timeout)
        if meeting.rank in (edge.sender, edge.receiver):
            _warm(edge, meeting.rank, payloads, meeting.device)

        def make(peer: int, count: int) -> list[Buffer]:
            stream = torch.cuda.Stream(meeting.device) if meeting.device.type == "cuda" else None
            return [NcclBuffer(edge.payload, peer, payloads, group, meeting.device, stream) for _ in range(count)]

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
