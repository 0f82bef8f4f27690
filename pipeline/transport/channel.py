"""Bounded queues between neighbours.

The receiver owns the buffers: ``depth`` messages may wait, plus the one being worked on. It posts a receive into each
free buffer ahead of time, and the sender holds one message whose receive is not posted yet. So the bound is the
back-pressure: who sends faster than the neighbour works waits in ``send``.

Three ways, one behaviour: ``LocalChannel`` between threads of one process, ``shared_memory`` between processes of one
machine, and between any others ``process_group`` over torch.distributed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from pipeline.errors import PeerLostError
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.transport.message import Message

_T = TypeVar("_T")

BROKEN_OFF = "broken off at this end"
"""Why a channel can be used no more after ``break_off``."""


class Sender(Protocol):
    """The upstream end of a channel."""

    def send(self, message: Message) -> None:
        """Sends; returns once the tensors may be changed. Waits while the queue is full.

        Raises:
            PeerLostError: the neighbour is gone or did not take a message in time.
        """
        ...

    def close(self) -> None:
        """Waits until everything sent has been taken. Raises PeerLostError as ``send`` does."""
        ...

    def break_off(self) -> None:
        """Lets go of the channel at once: what the neighbour waits for, now or next, raises PeerLostError there.
        Between processes what is asked of this end from now on raises it as well."""
        ...


class Receiver(Protocol):
    """The downstream end of a channel."""

    def receive(self) -> Message:
        """The next message; its tensors are valid until the next call. Waits while the queue is empty.

        Raises:
            PeerLostError: the neighbour is gone or sent nothing in time.
        """
        ...

    @property
    def waiting(self) -> int:
        """Messages that have arrived and were not received yet."""
        ...


class ReceivingEnd(Receiver, Protocol):
    """The downstream end of a channel from another worker. One that reads for itself is a ``Receiver`` alone."""

    def break_off(self) -> None:
        """As ``Sender.break_off``."""
        ...


class LocalChannel:
    """Both ends of a bounded queue between two threads. Tensors are copied, as between processes."""

    _POLL = 0.05  # seconds between looks at whether the other end still lives

    def __init__(
        self, name: str, *, depth: int, stall_timeout: float, sender_clock: Clock, receiver_clock: Clock
    ) -> None:
        self.name = name
        self._sender_clock, self._receiver_clock = sender_clock, receiver_clock
        self._queue: queue.Queue[Message] = queue.Queue(maxsize=depth)
        self._timeout = stall_timeout
        self._broken = threading.Event()

    def send(self, message: Message) -> None:
        with self._sender_clock.measure(TimeCategory.COPY):
            # Contiguous, as they are received between processes: another layout may mean other rounding.
            contiguous = torch.contiguous_format
            tensors = {name: t.clone(memory_format=contiguous) for name, t in message.tensors.items()}
        copy = Message(message.kind, message.epoch, message.step, message.position, message.last, tensors)
        with self._sender_clock.measure(TimeCategory.WAIT_OUT):
            self._repeat(lambda: self._queue.put(copy, timeout=self._POLL), queue.Full, "took no message")

    def receive(self) -> Message:
        with self._receiver_clock.measure(TimeCategory.WAIT_IN):
            return self._repeat(lambda: self._queue.get(timeout=self._POLL), queue.Empty, "sent nothing")

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def close(self) -> None:
        """Nothing is outstanding: the queue holds its own copies."""

    def break_off(self) -> None:
        self._broken.set()

    def _repeat(self, attempt: Callable[[], _T], not_yet: type[Exception], failure: str) -> _T:
        for _ in range(max(1, round(self._timeout / self._POLL))):
            broken = self._broken.is_set()  # before it looks: what was sent before the other end broke off is there
            try:
                return attempt()
            except not_yet:
                if broken:
                    raise PeerLostError(f"{self.name}: the neighbour is gone") from None
        raise PeerLostError(f"{self.name}: the neighbour {failure} for {self._timeout:g} s")
