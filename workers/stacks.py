"""Where a worker is that makes no headway: the stacks of its threads, or that its process was stopped."""

from __future__ import annotations

import faulthandler
import io
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SIGNAL = signal.SIGUSR2
_NAME = "localpipe-stacks"
_WRITTEN, _STILL, _LOOK = 5.0, 0.3, 0.05  # seconds: for stacks to be written, without more of them, between two looks
_STOPPED = ("T", "t")  # states of a process in /proc: by a signal, by a debugger
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)$', re.MULTILINE)
_ROOMS = ("pipeline", "workers", "launch")

_kept: list[io.FileIO] = []  # as long as the process lives: the handler writes there


@dataclass(frozen=True)
class Whereabouts:
    """Where a worker is.

    Attributes:
        fact: in words, to follow its name.
        stacks: of all its threads, where they could be had.
    """

    fact: str
    stacks: str = ""


def show_on_demand() -> None:
    """Has a signal write this process's stacks to memory that other processes of the machine can read.

    No Python runs for it, so it works while a thread holds the interpreter's lock. Only on Linux.
    """
    if sys.platform == "linux" and not _kept:
        _kept.append(io.FileIO(os.memfd_create(_NAME), "r+"))
        faulthandler.register(_SIGNAL, file=_kept[0], all_threads=True)


def whereabouts(pid: int) -> Whereabouts:
    """Where a process of this machine is that has called ``show_on_demand``."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return Whereabouts(f"its process {pid} is gone")
    if state in _STOPPED:
        return Whereabouts(f"its process {pid} was stopped by a signal")
    stacks = _stacks(pid)
    place = _place(stacks)
    return Whereabouts(f"its process {pid} is stuck{f' in {place}' if place else ''}", stacks)


def _stacks(pid: int) -> str:
    for entry in _files(pid):
        with suppress(OSError), io.FileIO(entry) as file:
            before = os.fstat(file.fileno()).st_size
            os.kill(pid, _SIGNAL)
            begun = grown = time.monotonic()
            size = before
            # They come line by line, and the process may have to wait for a core amid them.
            while (now := time.monotonic()) - begun < _WRITTEN and (size == before or now - grown < _STILL):
                if (found := os.fstat(file.fileno()).st_size) != size:
                    size, grown = found, now
                time.sleep(_LOOK)
            return os.pread(file.fileno(), size - before, before).decode(errors="replace")
    return ""


def _files(pid: int) -> Iterator[Path]:
    """The memory that it writes stacks to."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(entry) == f"/memfd:{_NAME} (deleted)":
                    yield entry


def _place(stacks: str) -> str:
    """The innermost line of ours in the thread that works on messages: "pipeline/layers/layer.py:128 (train)"."""
    for thread in stacks.split("\n\n"):
        frames = list(_FRAME.finditer(thread))  # the innermost first
        works = any(frame["function"] == "run" and frame["file"].endswith("workers/stage.py") for frame in frames)
        for frame in frames if works else ():
            parts = Path(frame["file"]).parts
            room = next(
                (n for n, part in enumerate(parts) if part in _ROOMS and "site-packages" not in parts[n:]), None
            )
            if room is not None:
                return f"{'/'.join(parts[room:])}:{frame['line']} ({frame['function']})"
    return ""
