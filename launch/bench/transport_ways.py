"""The ways that a message can take, each with processes of its own that send as fast as they can when asked."""

from __future__ import annotations

import resource
import socket
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from launch.bench.protocol import CannotRunError
from pipeline.errors import RunError
from pipeline.kind import Kind
from pipeline.spawn import Child, ask_all
from pipeline.telemetry.clock import Clock
from pipeline.transport import CARRIERS, Transport
from pipeline.transport.base import Edge
from pipeline.transport.channel import LocalChannel, Receiver, Sender
from pipeline.transport.edges import EdgeGroups
from pipeline.transport.message import HEADER_BYTES, Message, message_bytes

_TIMEOUT = 60.0  # seconds after which an end counts as stuck
_MORE, _STOP = 1, 0  # first byte of a frame on the raw socket
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Turn:
    """What an end or a way did when asked.

    Attributes:
        messages: received.
        seconds: until the last of them was received and read.
        cpu: seconds that each process computed, the sender's first.
    """

    messages: int
    seconds: float
    cpu: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """Asks an end to have messages of size ``index`` travel for so many seconds."""

    name: str
    index: int
    seconds: float


class End(ABC):
    """One process's part of a way. ``sizes``: payload bytes of the messages; 0 is a control token."""

    @abstractmethod
    def turn(self, index: int, until: float) -> int:
        """Messages of size ``index`` until that moment of the performance counter. Returns how many."""


class _Host:
    """What a process holds: ends by name. It answers questions to them, the first of which is "open"."""

    def __init__(self, makers: dict[str, Callable[[], End]]) -> None:
        torch.set_num_threads(1)
        self._ends = {name: make() for name, make in makers.items()}

    def __call__(self, question: Question | str) -> Turn | None:
        if isinstance(question, str):
            for end in self._ends.values():
                if isinstance(end, _ChannelEnd):
                    end.open()
            return None
        before, begun = _cpu(), time.perf_counter()
        messages = self._ends[question.name].turn(question.index, begun + question.seconds)
        return Turn(messages, time.perf_counter() - begun, (_cpu() - before,))


class _Memory(End):
    """What needs no other process: the read that every receiver does, and a copy before it."""

    def __init__(self, sizes: Sequence[int], *, copies: bool) -> None:
        self._copies = copies
        self._from = [torch.ones(HEADER_BYTES + size, dtype=torch.uint8) for size in sizes]
        self._into = [torch.zeros_like(memory) for memory in self._from]

    def turn(self, index: int, until: float) -> int:
        count = 0
        while time.perf_counter() < until:
            if self._copies:
                self._into[index].copy_(self._from[index])
            _read(self._into[index][HEADER_BYTES:])
            count += 1
        return count


class _Threads(End):
    """``LocalChannel`` between two threads of one process."""

    def __init__(self, sizes: Sequence[int], depth: int) -> None:
        self._depth = depth
        self._messages = [_message(size, _CPU) for size in sizes]

    def turn(self, index: int, until: float) -> int:
        channel = LocalChannel(
            "bench", depth=self._depth, stall_timeout=_TIMEOUT, sender_clock=Clock(), receiver_clock=Clock()
        )
        sender = threading.Thread(target=_send, args=(channel, self._messages[index], until))
        sender.start()
        count = _receive(channel)
        sender.join()
        return count


class _SocketEnd(End):
    """A TCP connection through the loopback, and nothing above it: frames of a known size."""

    def __init__(self, rank: int, connection: socket.socket, sizes: Sequence[int]) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sends, self._connection = rank == 0, connection
        self._frames = [torch.ones(HEADER_BYTES + size, dtype=torch.uint8) for size in sizes]

    def turn(self, index: int, until: float) -> int:
        frame = self._frames[index]
        memory = frame.numpy().data
        return self._send(memory, until) if self._sends else self._receive(memory, frame)

    def _send(self, memory: memoryview, until: float) -> int:
        count = 0
        memory[0] = _MORE
        while time.perf_counter() < until:
            self._connection.sendall(memory)
            count += 1
        memory[0] = _STOP
        self._connection.sendall(memory)
        return count

    def _receive(self, memory: memoryview, frame: Tensor) -> int:
        count = 0
        while True:
            got = 0
            while got < len(memory):
                size = self._connection.recv_into(memory[got:])
                if not size:
                    raise ConnectionResetError("the sender is gone")
                got += size
            if memory[0] == _STOP:
                return count
            _read(frame[HEADER_BYTES:])
            count += 1


class _ChannelEnd(End):
    """A channel as stages have it, an edge for each size."""

    def __init__(self, rank: int, groups: EdgeGroups, store: Path, sizes: Sequence[int]) -> None:
        on_gpus = "cpu" not in CARRIERS[groups.edges[0].transport].devices
        self._rank, self._groups, self._file = rank, groups, store
        self._device = torch.device("cuda", rank) if on_gpus else _CPU
        self._messages = [_message(size, self._device) for size in sizes]

    def open(self) -> None:
        """Meets the other end."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        store = FileStore(str(self._file), self._groups.num_ranks)
        store.set_timeout(timedelta(seconds=_TIMEOUT))
        self._ends = self._groups.join(self._rank, self._device, Clock(), store)

    def turn(self, index: int, until: float) -> int:
        if self._rank == 0:
            count = _send(self._ends.outboxes[index], self._messages[index], until)
        else:
            count = _receive(self._ends.inboxes[index])
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return count


def _message(size: int, device: torch.device) -> Message:
    return Message(Kind.TRAIN, tensors={"x": torch.ones(size // 4, device=device)} if size else {})


def _send(channel: Sender, message: Message, until: float) -> int:
    count = 0
    while time.perf_counter() < until:
        channel.send(message)
        count += 1
    channel.send(Message(Kind.STOP))
    channel.close()
    return count


def _receive(channel: Receiver) -> int:
    count = 0
    while True:
        message = channel.receive()
        if message.kind is Kind.STOP:
            return count
        for tensor in message.tensors.values():
            _read(tensor)
        count += 1


def _read(tensor: Tensor) -> None:
    """What a stage does at least: bytes that came without a copy have still to come."""
    (tensor if tensor.dtype == torch.float32 else tensor.view(torch.float32)).sum()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Processes:
    """The processes of one or several ways. A context manager.

    Args:
        makers: for each process its ends by name; the receiver's process comes last.

    Raises:
        CannotRunError: they cannot work here; the message says why. Also from ``turn``.
    """

    def __init__(self, name: str, makers: Sequence[dict[str, Callable[[], End]]]) -> None:
        self._children: list[Child[Question | str, Turn | None]] = []
        try:
            for rank, ends in enumerate(makers):
                self._children.append(Child(f"{name}, end {rank + 1}", _Host, ends))
            self._ask("open")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for child in self._children:
            child.close()

    def turn(self, name: str, index: int, seconds: float) -> Turn:
        """Has messages of size ``index`` go the way ``name`` for so many seconds."""
        parts = [part for part in self._ask(Question(name, index, seconds)) if part is not None]
        received = parts[-1]
        return Turn(received.messages, received.seconds, tuple(cpu for part in parts for cpu in part.cpu))

    def _ask(self, question: Question | str) -> list[Turn | None]:
        try:
            return ask_all(self._children, question)
        except RunError as error:
            self.close()  # what the other end waits for will not come
            raise CannotRunError(str(error)) from error


def alone(sizes: Sequence[int], *, depth: int) -> Processes:
    """The ways "read", "copy" and "local": one process."""
    ends: dict[str, Callable[[], End]] = {
        "read": partial(_Memory, sizes, copies=False),
        "copy": partial(_Memory, sizes, copies=True),
        "local": partial(_Threads, sizes, depth),
    }
    return Processes("one process", [ends])


def raw_socket(sizes: Sequence[int]) -> Processes:
    """The way "socket"."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sending = socket.create_connection(server.getsockname())
        receiving, _ = server.accept()
    with sending, receiving:  # the processes get copies
        makers: list[dict[str, Callable[[], End]]] = [
            {"socket": partial(_SocketEnd, rank, connection, sizes)}
            for rank, connection in enumerate((sending, receiving))
        ]
        return Processes("socket", makers)


@contextmanager
def channel(transport: Transport, sizes: Sequence[int], *, depth: int) -> Iterator[Processes]:
    """The way named as the transport.

    Raises:
        CannotRunError: this machine does not have it.
    """
    if "cpu" not in CARRIERS[transport].devices and torch.cuda.device_count() < 2:
        raise CannotRunError(f"{transport} needs 2 GPUs, this machine has {torch.cuda.device_count()}")
    payloads = [message_bytes(_message(size, torch.device("meta"))) for size in sizes]
    edges = tuple(
        Edge(f"{size} bytes", 0, 1, payload, transport) for size, payload in zip(sizes, payloads, strict=True)
    )
    groups = EdgeGroups(edges, 2, _TIMEOUT, depth)
    with tempfile.TemporaryDirectory(prefix="localpipe-bench-") as folder:
        store = Path(folder, "store")
        makers: list[dict[str, Callable[[], End]]] = [
            {transport: partial(_ChannelEnd, rank, groups, store, sizes)} for rank in (0, 1)
        ]
        with Processes(transport, makers) as processes:
            yield processes
