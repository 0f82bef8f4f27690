"""How a message's bytes get from one process to the next: over gloo or NCCL."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import ChannelError
from pipeline.transport.channel import BROKEN_OFF
from pipeline.transport.message import HEADER_BYTES, payload_size

_LONGEST = 365 * 86_400.0  # seconds that gloo is asked to wait for what may take forever: it knows no such time


class Buffer(Protocol):
    """Memory for one message, and how it travels to or from the peer.

    Whatever waits raises RuntimeError after so many seconds, or when the peer is gone.
    """

    @property
    def header(self) -> Tensor:
        """(HEADER_BYTES,) uint8 in host memory."""
        ...

    @property
    def payload(self) -> Tensor:
        """(bytes,) uint8: where the next message to be sent is written, or the one received lies."""
        ...

    def post_send(self, size: int) -> None:
        """Starts sending the header and the first ``size`` bytes of the payload."""
        ...

    def wait_sent(self, seconds: float) -> None:
        """Waits until the message is taken, so that the buffer may be written."""
        ...

    def post_receive(self) -> None:
        """Starts receiving what can come before it is known how large the message is."""
        ...

    def take_payload(self, seconds: float) -> None:
        """Starts receiving the rest, if that has not begun: the header is here, or comes within so many seconds."""
        ...

    def wait_received(self, seconds: float) -> None:
        """Waits until the message is here; on a GPU, for what is launched from now on."""
        ...

    def abandon(self) -> None:
        """The peer is gone, or this end goes: nothing that was posted holds the device up any longer, and what is
        posted from now on raises RuntimeError. Lets go of the process groups, whose connections end when nobody holds
        them any more."""
        ...


class HostBuffer:
    """Header and payload as one piece of host memory, one gloo message."""

    def __init__(self, payload: int, peer: int, group: dist.ProcessGroup, *, pinned: bool) -> None:
        self._frame = torch.zeros(HEADER_BYTES + payload, dtype=torch.uint8, pin_memory=pinned)
        self.header, self.payload = self._frame[:HEADER_BYTES], self._frame[HEADER_BYTES:]
        self._peer = peer
        self._group: dist.ProcessGroup | None = group
        self._work: dist.Work | None = None

    def post_send(self, size: int) -> None:
        self._work = dist.isend(self._frame[: HEADER_BYTES + size], self._peer, group=_there(self._group))

    def wait_sent(self, seconds: float) -> None:
        _wait(self._work, seconds)

    def post_receive(self) -> None:
        # gloo takes a shorter message into a longer buffer.
        self._work = dist.irecv(self._frame, self._peer, group=_there(self._group))

    def take_payload(self, seconds: float) -> None:
        """It comes with the header."""

    def wait_received(self, seconds: float) -> None:
        _wait(self._work, seconds)

    def abandon(self) -> None:
        """A message that is under way holds gloo's connection, as the group does."""
        self._work = self._group = None


class NcclBuffer:
    """Payload in GPU memory over NCCL, header in host memory over gloo: reading it must not stop the GPU.

    The header goes first. A receive of NCCL is a kernel that spins until the sender's runs, and whatever waits for the
    whole device waits for it too: a kernel that is loaded on its first use, a graph's capture, memory that is
    allocated. So it is posted only once a header says that the sender has posted its part, and with the size that the
    header names. A control token has no payload, and no kernel.

    NCCL's works do not block the host, they order the GPU's streams. What holds the host back is the header, of which
    depth + 1 may be under way.

    Args:
        stream: on which payloads are received. It waits only until what reads the buffer's last message is done, so
            that a message travels while the one before is worked on. None where the device is no GPU.
    """

    def __init__(
        self,
        payload: int,
        peer: int,
        group: dist.ProcessGroup,
        header_group: dist.ProcessGroup,
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self.header = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
        self.payload = torch.zeros(max(payload, 1), dtype=torch.uint8, device=device)
        self._peer = peer
        self._group: dist.ProcessGroup | None = group
        self._header_group: dist.ProcessGroup | None = header_group
        self._stream = stream
        self._free: torch.cuda.Event | None = None
        self._taken = True
        self._head: dist.Work | None = None
        self._body: dist.Work | None = None

    def post_send(self, size: int) -> None:
        self._head = dist.isend(self.header, self._peer, group=_there(self._header_group))
        self._body = dist.isend(self.payload[:size], self._peer, group=_there(self._group)) if size else None

    def wait_sent(self, seconds: float) -> None:
        _wait(self._head, seconds)
        self._order()

    def post_receive(self) -> None:
        if self._stream is not None:
            self._free = torch.cuda.current_stream(self.payload.device).record_event()
        self._head = dist.irecv(self.header, self._peer, group=_there(self._header_group))
        self._body, self._taken = None, False

    def take_payload(self, seconds: float) -> None:
        if self._taken:
            return
        _wait(self._head, seconds)
        self._taken = True
        size = payload_size(self.header)
        if size > len(self.payload):
            raise ChannelError(f"a message announces {size:,} bytes, and the channel takes {len(self.payload):,}")
        if size:
            with self._beside():
                self._body = dist.irecv(self.payload[:size], self._peer, group=_there(self._group))

    def wait_received(self, seconds: float) -> None:
        self.take_payload(seconds)
        self._order()

    def abandon(self) -> None:
        """Ends the kernels of both ends' communicator. What they were to receive is not to be used."""
        there = self._group in dist.distributed_c10d._world.pg_map  # another buffer of the group may have ended it
        if self.payload.is_cuda and there:
            dist.distributed_c10d._abort_process_group(self._group)
        # Only now do the headers' connections end, by which the peer notices: it ends its own kernels then.
        self._group = self._header_group = self._head = self._body = None

    def _order(self) -> None:
        """What is launched from now on comes after the payload's journey."""
        if self._body is not None:
            self._body.wait()  # with a timeout it would hold the host up until the bytes are there

    def _beside(self) -> AbstractContextManager[object]:
        if self._stream is None:
            return nullcontext()
        assert self._free is not None, "it was posted"
        self._stream.wait_event(self._free)
        return torch.cuda.stream(self._stream)


def _there(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group, which torch would take for another one were it none. Raises RuntimeError where it was let go of."""
    if group is None:
        raise RuntimeError(BROKEN_OFF)
    return group


def _wait(work: dist.Work | None, seconds: float) -> None:
    if work is None:
        raise RuntimeError(BROKEN_OFF)
    work.wait(timedelta(seconds=min(seconds, _LONGEST)))
