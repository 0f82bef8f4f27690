"""How a message's bytes get from one process to the next: over gloo or NCCL."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.transport.message import HEADER_BYTES


class Buffer(Protocol):
    """Memory for one message, and how it travels to or from the peer."""

    @property
    def header(self) -> Tensor:
        """(HEADER_BYTES,) uint8 in host memory."""
        ...

    @property
    def payload(self) -> Tensor:
        """(bytes,) uint8: where the next message to be sent is written, or the one received lies."""
        ...

    def post_send(self, size: int) -> list[dist.Work]:
        """Starts sending the header and the first ``size`` bytes of the payload."""
        ...

    def post_receive(self) -> list[dist.Work]:
        """Starts receiving."""
        ...

    def wait(self, works: list[dist.Work], seconds: float) -> None:
        """Waits for what was posted. Raises RuntimeError after so many seconds, or when the peer is gone."""
        ...


class HostBuffer:
    """Header and payload as one piece of host memory, one gloo message."""

    def __init__(self, payload: int, peer: int, group: dist.ProcessGroup, *, pinned: bool) -> None:
        self._frame = torch.zeros(HEADER_BYTES + payload, dtype=torch.uint8, pin_memory=pinned)
        self.header, self.payload = self._frame[:HEADER_BYTES], self._frame[HEADER_BYTES:]
        self._peer, self._group = peer, group

    def post_send(self, size: int) -> list[dist.Work]:
        return _works(dist.isend(self._frame[: HEADER_BYTES + size], self._peer, group=self._group))

    def post_receive(self) -> list[dist.Work]:
        # gloo takes a shorter message into a longer buffer.
        return _works(dist.irecv(self._frame, self._peer, group=self._group))

    def wait(self, works: list[dist.Work], seconds: float) -> None:
        for work in works:
            work.wait(timedelta(seconds=seconds))


class NcclBuffer:
    """Payload in GPU memory over NCCL, header in host memory over gloo: reading it must not stop the GPU.

    NCCL wants both ends to name the same size, so the whole payload buffer travels. Its works do not block the host:
    they order the GPU's streams. What holds the host back is the header, of which depth + 1 may be under way.
    """

    def __init__(
        self, payload: int, peer: int, group: dist.ProcessGroup, header_group: dist.ProcessGroup, device: torch.device
    ) -> None:
        self.header = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
        self.payload = torch.zeros(max(payload, 1), dtype=torch.uint8, device=device)
        self._peer, self._group, self._header_group = peer, group, header_group

    def post_send(self, size: int) -> list[dist.Work]:
        header = dist.isend(self.header, self._peer, group=self._header_group)
        return _works(header, dist.isend(self.payload, self._peer, group=self._group))

    def post_receive(self) -> list[dist.Work]:
        header = dist.irecv(self.header, self._peer, group=self._header_group)
        return _works(header, dist.irecv(self.payload, self._peer, group=self._group))

    def wait(self, works: list[dist.Work], seconds: float) -> None:
        header, payload = works
        header.wait(timedelta(seconds=seconds))
        payload.wait()  # orders the GPU's streams; with a timeout it would hold the host up until the bytes are there


def _works(*works: dist.Work | None) -> list[dist.Work]:
    assert all(work is not None for work in works), "both ends belong to the group"
    return [work for work in works if work is not None]
