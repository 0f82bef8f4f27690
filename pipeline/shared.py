"""Memory that two processes of one machine share, in slots, a message's payload in each.

It is an anonymous file (memfd). No folder holds it, so /dev/shm, which has 64 MB in a container, does not limit it, and
nothing is left of it once both processes are gone, however they end. Who offers it tells the number of its process,
that of the file there, and the file's random name. Who finds a file of that name there in its own /proc is on the same
machine, sees the same processes and may open it. Nothing else would be as sure: machines restored from one image may
share a boot id.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

PROCESSES = Path("/proc")

_PAGE = mmap.PAGESIZE


class SharedSlots:
    """``count`` slots of ``payload`` bytes, each beginning on a page of its own.

    Args:
        file: an open file of ``slots_bytes(payload, count)`` bytes; may be closed afterwards.
    """

    def __init__(self, file: int, payload: int, count: int) -> None:
        # The pages are there at once: the first message pays for none of them.
        memory = mmap.mmap(file, slots_bytes(payload, count), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping as long as a view of it lives
        self._slots: list[Tensor] = [slot[:payload] for slot in whole.split(slots_bytes(payload, 1))]

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, number: int) -> Tensor:
        """The slot of message ``number`` (payload,) uint8: slots take turns."""
        return self._slots[number % len(self._slots)]


@dataclass(frozen=True)
class Address:
    """Where other processes of the machine find slots, as long as they are offered."""

    process: int
    file: int
    token: bytes

    _FORM: ClassVar = struct.Struct("<qq16s")
    BYTES: ClassVar = _FORM.size

    @classmethod
    def nowhere(cls) -> Self:
        """No process has it: an offer that nobody can take."""
        return cls(process=0, file=0, token=bytes(16))

    @classmethod
    def unpack(cls, written: bytes) -> Self:
        return cls(*cls._FORM.unpack(written))

    def pack(self) -> bytes:
        """``BYTES`` bytes."""
        return self._FORM.pack(self.process, self.file, self.token)

    @property
    def name(self) -> str:
        return f"localpipe-{self.token.hex()}"


@contextmanager
def offered(payload: int, count: int) -> Iterator[tuple[SharedSlots | None, Address]]:
    """New slots, and the address at which others find them while the block lasts. (None, nowhere) without memfd."""
    if sys.platform != "linux":
        yield None, Address.nowhere()
        return
    token = secrets.token_bytes(16)
    file = os.memfd_create(Address(0, 0, token).name)
    try:
        os.ftruncate(file, slots_bytes(payload, count))
        yield SharedSlots(file, payload, count), Address(os.getpid(), file, token)
    finally:
        os.close(file)


def found(address: Address, payload: int, count: int) -> SharedSlots | None:
    """Slots that another process offers, or None where this one cannot reach them, such as on another machine."""
    link = PROCESSES / str(address.process) / "fd" / str(address.file)
    try:
        # The name is looked at first: to open another process's file that is something else might do something.
        if os.readlink(link) != f"/memfd:{address.name} (deleted)":
            return None
        file = os.open(link, os.O_RDWR)
    except OSError:  # there is no such process, or it is another user's
        return None
    try:
        return SharedSlots(file, payload, count)
    finally:
        os.close(file)


def slots_bytes(payload: int, count: int) -> int:
    """Memory that slots take, in bytes."""
    return count * max(1, -(-payload // _PAGE)) * _PAGE
