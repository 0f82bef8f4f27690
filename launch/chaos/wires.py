"""What runs between the workers of a run, got hold of from outside: pipes that carry messages, network connections.

Linux lets whoever may trace a process open its files, and take a copy of its sockets.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.transport.message import HEADER_BYTES

_PIDFD_GETFD = 438  # the system call's number, on every architecture


def with_messages(workers: Collection[int]) -> list[tuple[int, int]]:
    """Pipes between two of these processes in which messages wait, each as the reading process and its file.

    What goes the other way, slots given back, is a byte each and never as long as a header.
    """
    writing = {target for pid in workers for _, target, writes in _pipes(pid) if writes}
    reading = [(pid, file, target) for pid in workers for file, target, writes in _pipes(pid) if not writes]
    return sorted((pid, file) for pid, file, target in reading if target in writing and _length(pid, file))


def intrude(pid: int, file: int, content: bytes) -> bool:
    """Writes into a pipe from which a process reads. Returns whether it could."""
    try:
        pipe = os.open(f"/proc/{pid}/fd/{file}", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # it has been closed, or the process has ended
        return False
    try:
        return os.write(pipe, content) == len(content)
    except OSError:  # full, or closed meanwhile
        return False
    finally:
        os.close(pipe)


def cut(pid: int) -> int:
    """Shuts down every TCP connection of a process. Returns how many there were."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        return sum(_shut_down(process, file) for file, target in _files(pid) if target.startswith("socket:"))
    finally:
        os.close(process)


def _shut_down(process: int, file: int) -> bool:
    """Shuts a process's socket down; whether it is of TCP and was connected."""
    copied = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, file, 0)
    if copied < 0:
        number = ctypes.get_errno()
        if number in (errno.EBADF, errno.ESRCH):  # closed, or ended, meanwhile
            return False
        raise OSError(number, os.strerror(number))
    with socket.socket(fileno=copied) as one:
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
            return False
        try:
            one.getpeername()  # one that listens has none
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            return False
    return True


def _files(pid: int) -> Iterator[tuple[int, str]]:
    """A process's open files, and what they are."""
    with suppress(OSError):  # it ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                yield int(entry.name), os.readlink(entry)


def _pipes(pid: int) -> Iterator[tuple[int, str, bool]]:
    """A process's ends of pipes: file, which pipe, and whether it writes."""
    for file, target in _files(pid):
        if target.startswith("pipe:"):
            with suppress(OSError):
                said = Path(f"/proc/{pid}/fdinfo/{file}").read_text()
                flags = int(next(line for line in said.splitlines() if line.startswith("flags:")).split()[1], 8)
                yield file, target, bool(flags & os.O_ACCMODE)


def _length(pid: int, file: int) -> int:
    """Whole headers that wait in a pipe."""
    try:
        pipe = os.open(f"/proc/{pid}/fd/{file}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # closed meanwhile
        return 0
    try:
        waiting: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
        return waiting // HEADER_BYTES
    finally:
        os.close(pipe)
