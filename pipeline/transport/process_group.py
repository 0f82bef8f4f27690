"""Both ends of a channel between processes, over torch.distributed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipeline.errors import PeerLostError
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.transport.buffers import Buffer
from pipeline.transport.message import Message, pack, sequence_of, unpack


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
