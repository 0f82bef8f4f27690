"""Ctrl-C, and what a scheduler, `docker stop` or a closed terminal sends in its place."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

INTERRUPTED = 130
"""Exit status of what was stopped by hand or by a scheduler, as shells have it."""

_PATIENCE = 10.0

OF_MANY = signal.SIGUSR1
"""What a sweep sends the runs that it has started: whoever stops a sweep may send them all else, too."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, OF_MANY)

Hear = Callable[[int, FrameType | None], None]


@contextmanager
def heard_by(hear: Hear) -> Iterator[None]:
    """Within it the signals that ask a program to stop call ``hear``, in the main thread.

    One that whoever started the program has it ignore, as nohup does with SIGHUP, stays ignored. In another thread
    than the main one, which alone can set handlers, nothing is heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Ending:
    """The two ends of a process, where a KeyboardInterrupt would come out as a traceback.

    Attributes:
        status: the exit status, once it is known; an error that nobody caught has 1.
    """

    status = 1

    def stopped(self, number: int, frame: FrameType | None) -> None:
        """Before anything has begun: says so, and ends the process."""
        os.write(2, b"stopped\n")  # sys.stderr may be in use where the signal came
        os._exit(INTERRUPTED)

    def over(self, number: int, frame: FrameType | None) -> None:
        """When everything is done: ends the process without waiting for what is left of it."""
        self.leave()

    def leave(self) -> None:
        """Ends the process after what others do at its exit, before the interpreter takes itself apart.

        While it does, a signal kills, and so may threads of PyTorch's or Ray's that still run.
        """
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # nobody may be there to read
                stream.flush()
        os._exit(self.status)


def hear(handler: Hear) -> None:
    """From now on the signals that ask a program to stop call ``handler``, but for those that are ignored."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


class Interrupt:
    """A handler: every such signal is Ctrl-C, once.

    What ends then, such as Ray's processes, ends within seconds; another KeyboardInterrupt in the middle of it would
    leave the rest behind and come out as a traceback. After ``_PATIENCE`` seconds the next one counts again.
    """

    def __init__(self) -> None:
        self._heard: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._heard is None or time.monotonic() - self._heard > _PATIENCE:
            self._heard = time.monotonic()
            raise KeyboardInterrupt


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is a KeyboardInterrupt, or what a C extension that was being imported has made of one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def process_began() -> float:
    """When this process was started, in seconds since 1970: before its interpreter was there. Without /proc: now."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.time()
    return time.time() - up + int(fields[19]) / os.sysconf("SC_CLK_TCK")
