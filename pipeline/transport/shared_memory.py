"""A channel between two processes of one machine: payloads in memory that both see, headers through a pipe.

The sender writes a payload once, into a free slot; the receiver's tensors are views of it. A header of fixed size says
what lies there. A byte through a second pipe gives a slot back, when the receiver is done with it: so the slots are the
queue's bound, and none is written while it is read.

The memory is an anonymous file (memfd). No folder holds it, so /dev/shm, which has 64 MB in a container, does not limit
it. Nothing is left of it or of the pipes once both processes are gone, however they end; and the pipes tell either end
at once when the other is gone.
"""

from __future__ import annotations

import fcntl
import io
import math
import mmap
import os
import secrets
import select
import struct
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from pipeline.errors import PeerLostError
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.transport.base import CARRIERS, Carrier, DeviceKind, Edge, Meeting
from pipeline.transport.channel import BROKEN_OFF, ReceivingEnd, Sender
from pipeline.transport.message import HEADER_BYTES, Message, pack, unpack

PROCESSES = Path("/proc")

_PAGE = mmap.PAGESIZE
_CREDIT = b"\x01"


@dataclass(frozen=True)
class Address:
    """Where the receiver finds what a sender offers: the sender's process, files open there, and the memory's name.

    Who finds memory of that random name there in its own /proc is on the same machine, sees the same processes and may
    open their files. Nothing else would be as sure: machines restored from one image may share a boot id.
    """

    process: int
    memory: int
    headers: int
    credits: int
    token: bytes

    _FORM: ClassVar = struct.Struct("<qqqq16s")

    @classmethod
    def unpack(cls, written: str) -> Self:
        return cls(*cls._FORM.unpack(bytes.fromhex(written)))

    def pack(self) -> str:
        return self._FORM.pack(self.process, self.memory, self.headers, self.credits, self.token).hex()

    @property
    def name(self) -> str:
        """The memory's."""
        return f"localpipe-{self.token.hex()}"

    def path(self, file: int) -> Path:
        """The process's file of that number, as other processes see it."""
        return PROCESSES / str(self.process) / "fd" / str(file)


NOWHERE = Address(0, 0, 0, 0, bytes(16))
"""No process offers anything there."""


class SharedSlots:
    """``count`` slots of ``payload`` bytes, each beginning on a page of its own."""

    def __init__(self, file: int, payload: int, count: int) -> None:
        # The pages are there at once: the first message pays for none of them.
        memory = mmap.mmap(file, _slots_bytes(payload, count), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping as long as a view of it lives
        self._slots: list[Tensor] = [slot[:payload] for slot in whole.split(_slots_bytes(payload, 1))]

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, number: int) -> Tensor:
        """The slot of message ``number`` (payload,) uint8: slots take turns."""
        return self._slots[number % len(self._slots)]


class Offer:
    """The upstream end's side of a new channel, and its other side until the receiver has opened that, or could not.

    Args:
        payload: bytes of the largest message.
        depth: messages that may wait.
    """

    def __init__(self, payload: int, depth: int) -> None:
        token = secrets.token_bytes(16)
        name = Address(0, 0, 0, 0, token).name
        self._memory = io.FileIO(os.memfd_create(name), "r+")
        # As many wait as may, one is worked on, one is with the sender.
        os.ftruncate(self._memory.fileno(), _slots_bytes(payload, depth + 2))
        self._slots = SharedSlots(self._memory.fileno(), payload, depth + 2)
        self._theirs_headers, self._headers = _pipe()
        self._credits, self._theirs_credits = _pipe()
        self.address = Address(
            os.getpid(), self._memory.fileno(), self._theirs_headers.fileno(), self._theirs_credits.fileno(), token
        )

    def accept(self, name: str, *, stall_timeout: float, clock: Clock) -> SharedSender:
        """The upstream end, once the receiver has opened its own."""
        self.close()
        return SharedSender(name, self._slots, self._headers, self._credits, stall_timeout=stall_timeout, clock=clock)

    def make_room(self, messages: int) -> bool:
        """Has so many messages wait without a sender that waits; whether the system allows it."""
        needed = (messages + 2) * HEADER_BYTES
        if fcntl.fcntl(self._headers, fcntl.F_GETPIPE_SZ) < needed:
            with suppress(OSError):  # more than a user may have
                fcntl.fcntl(self._headers, fcntl.F_SETPIPE_SZ, needed)
        return fcntl.fcntl(self._headers, fcntl.F_GETPIPE_SZ) >= needed

    def withdraw(self) -> None:
        """Nobody takes it."""
        self.close()
        self._headers.close()
        self._credits.close()

    def close(self) -> None:
        """Lets go of what is the receiver's. Only then does the death of one end show at the other."""
        for file in (self._memory, self._theirs_headers, self._theirs_credits):
            file.close()


def create_offer(payload: int, depth: int) -> Offer | None:
    """A new channel for a receiver on this machine; None on a system without memfd."""
    return Offer(payload, depth) if sys.platform == "linux" else None


def attach(
    address: Address, name: str, payload: int, depth: int, *, stall_timeout: float, clock: Clock
) -> SharedReceiver | None:
    """The downstream end of what is offered there. None where this process cannot reach it, as on another machine."""
    try:
        # The name is looked at first: to open another process's file that is something else might do something.
        if os.readlink(address.path(address.memory)) != f"/memfd:{address.name} (deleted)":
            return None
        with io.FileIO(address.path(address.memory), "r+") as memory:
            slots = SharedSlots(memory.fileno(), payload, depth + 2)
        headers, credits_ = io.FileIO(address.path(address.headers)), io.FileIO(address.path(address.credits), "w")
    except OSError:  # there is no such process, or it is another user's
        return None
    return SharedReceiver(name, slots, headers, credits_, stall_timeout=stall_timeout, clock=clock)


class _SharedEnd:
    """What either end has of a channel."""

    def __init__(
        self,
        name: str,
        slots: SharedSlots,
        headers: io.FileIO,
        credits_: io.FileIO,
        *,
        stall_timeout: float,
        clock: Clock,
    ) -> None:
        self.name = name
        self._slots, self._headers, self._credits = slots, headers, credits_
        self._clock, self._timeout = clock, stall_timeout
        self._header = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
        self._sequence = 0

    def break_off(self) -> None:
        """Lets go of the pipes, which shows at their other ends."""
        self._headers.close()
        self._credits.close()

    def _check(self) -> None:
        if self._headers.closed:
            raise PeerLostError(f"{self.name}: {BROKEN_OFF}")


class SharedSender(_SharedEnd):
    """Upstream end. Implements ``pipeline.transport.channel.Sender``."""

    def __init__(self, name: str, slots: SharedSlots, *pipes: io.FileIO, stall_timeout: float, clock: Clock) -> None:
        super().__init__(name, slots, *pipes, stall_timeout=stall_timeout, clock=clock)
        self._free = len(slots)

    def send(self, message: Message) -> None:
        self.close()
        with self._clock.measure(TimeCategory.COPY):
            pack(message, self._header, self._slots[self._sequence], self._sequence)
        self._sequence += 1
        self._free -= 1
        with self._clock.measure(TimeCategory.WAIT_OUT):
            # There is room for as many headers as there are slots, unless the system keeps the user's pipes small.
            _wait(self._headers, select.POLLOUT, self._timeout, f"{self.name}: the neighbour took no message")
            try:
                self._headers.write(self._header.numpy().data)  # so short a piece goes whole or not at all
            except BrokenPipeError as error:
                raise PeerLostError(f"{self.name}: the neighbour is gone") from error

    def close(self) -> None:
        """Waits until a slot is free: then all but the messages that may wait have been taken."""
        self._check()
        with self._clock.measure(TimeCategory.WAIT_OUT):
            while not self._free:
                _wait(self._credits, select.POLLIN, self._timeout, f"{self.name}: the neighbour took no message")
                given = self._credits.read(len(self._slots))
                if not given:
                    raise PeerLostError(f"{self.name}: the neighbour is gone")
                self._free += len(given)


class SharedReceiver(_SharedEnd):
    """Downstream end. Implements ``pipeline.transport.channel.Receiver``."""

    def receive(self) -> Message:
        self._check()
        with self._clock.measure(TimeCategory.WAIT_IN):
            if self._sequence > 0:
                self._give_back()
            _wait(self._headers, select.POLLIN, self._timeout, f"{self.name}: the neighbour sent nothing")
            if self._headers.readinto(self._header.numpy().data) != HEADER_BYTES:
                raise PeerLostError(f"{self.name}: the neighbour is gone")
        with self._clock.measure(TimeCategory.COPY):
            message = unpack(self._header, self._slots[self._sequence], self._sequence)
        self._sequence += 1
        return message

    @property
    def waiting(self) -> int:
        try:
            arrived = struct.unpack("i", fcntl.ioctl(self._headers, termios.FIONREAD, bytes(4)))[0] // HEADER_BYTES
        except ValueError:  # broken off, perhaps while somebody asked
            return 0
        worked_on = int(self._sequence > 0)
        return int(min(arrived, len(self._slots) - 1 - worked_on))  # one more is with the sender

    def _give_back(self) -> None:
        """Frees the slot of the message before, which is done with."""
        with suppress(BrokenPipeError):  # a sender that has sent all and gone wants no slot; what it sent is there
            self._credits.write(_CREDIT)


@CARRIERS.register
class SharedMemory(Carrier):
    """Memory that both ends see."""

    kind: ClassVar[str] = "shm"
    devices = frozenset[DeviceKind](("cpu",))
    one_machine = True
    auto_place: ClassVar[int | None] = 0
    needs = "both ends on one Linux machine, in one container, as one user"

    def connect(self, meeting: Meeting, edges: Sequence[Edge]) -> dict[Edge, Sender | ReceivingEnd | None]:
        rank, store = meeting.rank, meeting.store
        offers: dict[Edge, Offer | None] = {}
        for edge in edges:
            if rank == edge.sender:
                offer = offers[edge] = _offer_for(edge, meeting)
                store.set(f"{edge.name}: offer", (offer.address if offer is not None else NOWHERE).pack())
        receivers: dict[Edge, SharedReceiver | None] = {}
        for edge in edges:
            if rank == edge.receiver:
                address = Address.unpack(store.get(f"{edge.name}: offer").decode())
                receiver = receivers[edge] = attach(
                    address,
                    edge.name,
                    edge.payload,
                    meeting.depth(edge),
                    stall_timeout=meeting.patience(edge),
                    clock=meeting.clock,
                )
                store.set(f"{edge.name}: answer", "no" if receiver is None else "taken")
        joined: dict[Edge, Sender | ReceivingEnd | None] = {}
        for edge in edges:
            taken, mine = store.get(f"{edge.name}: answer") == b"taken", offers.get(edge)
            if taken and mine is not None:
                joined[edge] = mine.accept(edge.name, stall_timeout=meeting.timeout, clock=meeting.clock)
            elif taken:
                joined[edge] = receivers.get(edge)
            elif mine is not None:
                mine.close()
        return joined


def _offer_for(edge: Edge, meeting: Meeting) -> Offer | None:
    """A sender's offer; None where the system has none, or where messages that must not wait would."""
    offer = create_offer(edge.payload, meeting.depth(edge))
    if offer is not None and edge.depth is not None and not offer.make_room(edge.depth):
        offer.withdraw()
        return None
    return offer


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    """Both ends of a new pipe, the one to read from first."""
    reading, writing = os.pipe()
    return io.FileIO(reading), io.FileIO(writing, "w")


def _wait(file: io.FileIO, event: int, timeout: float, failure: str) -> None:
    """Waits until a pipe is ready, or its other end gone. Raises PeerLostError after so many seconds."""
    poll = select.poll()
    poll.register(file, event)
    if not poll.poll(None if math.isinf(timeout) else timeout * 1000):
        raise PeerLostError(f"{failure} for {timeout:g} s")


def _slots_bytes(payload: int, count: int) -> int:
    """Memory that slots take, in bytes."""
    return count * max(1, -(-payload // _PAGE)) * _PAGE
