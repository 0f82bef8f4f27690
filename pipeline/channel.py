"""Bounded queues between neighbours.

The receiver owns the buffers: ``depth`` messages may wait, plus the one being worked on. It posts a receive into each
free buffer ahead of time, and the sender holds one message whose receive is not posted yet. So the bound is the
back-pressure: who sends faster than the neighbour works waits in ``send``.

Three ways, one behaviour: ``LocalChannel`` between threads of one process, ``pipeline.shared`` between processes of
one machine, and between any others ``DistSender`` and ``DistReceiver`` over torch.distributed, where a ``Buffer`` says
how a message's bytes travel.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from pipeline.buffers import Buffer
from pipeline.errors import PeerLostError
from pipeline.messages import Message, pack, sequence_of, unpack
from pipeline.metrics import Clock, Spent

_T = TypeVar("_T")


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
        with self._sender_clock.measure(Spent.COPY):
            # Contiguous, as they come off a wire: another layout may mean other rounding.
            contiguous = torch.contiguous_format
            tensors = {name: t.clone(memory_format=contiguous) for name, t in message.tensors.items()}
        copy = Message(message.kind, message.epoch, message.step, message.position, message.last, tensors)
        with self._sender_clock.measure(Spent.WAIT_OUT):
            self._repeat(lambda: self._queue.put(copy, timeout=self._POLL), queue.Full, "took no message")

    def receive(self) -> Message:
        with self._receiver_clock.measure(Spent.WAIT_IN):
            return self._repeat(lambda: self._queue.get(timeout=self._POLL), queue.Empty, "sent nothing")

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def close(self) -> None:
        """Nothing is outstanding: the queue holds its own copies."""

    def break_off(self) -> None:
        """For an end that died: the other end's pending or next wait raises PeerLostError."""
        self._broken.set()

    def _repeat(self, attempt: Callable[[], _T], not_yet: type[Exception], failure: str) -> _T:
        for _ in range(max(1, round(self._timeout / self._POLL))):
            try:
                return attempt()
            except not_yet:
                if self._broken.is_set():
                    raise PeerLostError(f"{self.name}: the neighbour is gone") from None
        raise PeerLostError(f"{self.name}: the neighbour {failure} for {self._timeout:g} s")


class DistSender:
    """Upstream end between processes: one buffer, filled once its last message has left."""

    def __init__(self, name: str, buffer: Buffer, *, stall_timeout: float, clock: Clock) -> None:
        self.name = name
        self._buffer, self._clock, self._timeout = buffer, clock, stall_timeout
        self._works: list[dist.Work] = []
        self._sequence = 0

    def send(self, message: Message) -> None:
        self.close()
        with self._clock.measure(Spent.COPY):
            size = pack(message, self._buffer.header, self._buffer.payload, self._sequence)
            for device in {
                t.device for t in message.tensors.values() if t.is_cuda and not self._buffer.payload.is_cuda
            }:
                torch.cuda.current_stream(device).synchronize()  # the bytes have arrived in host memory
        self._sequence += 1
        with self._clock.measure(Spent.WAIT_OUT), _peer(self.name, "took no message", self._timeout):
            self._works = self._buffer.post_send(size)

    def close(self) -> None:
        with self._clock.measure(Spent.WAIT_OUT), _peer(self.name, "took no message", self._timeout):
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
        with self._clock.measure(Spent.WAIT_IN):
            if self._copied is not None:
                self._copied.synchronize()
            if self._sequence > 0:
                self._post((self._sequence - 1) % len(self._buffers))  # the message before is done with
            with _peer(self.name, "sent nothing", self._timeout):
                self._buffers[slot].wait(self._works[slot], self._timeout)
            self._works[slot] = []
        buffer = self._buffers[slot]
        with self._clock.measure(Spent.COPY):
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
