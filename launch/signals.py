"""Ctrl-C, and what a scheduler, `docker stop` or a closed terminal sends in its place."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

INTERRUPTED = 130
"""Exit status of what was stopped by hand or by a scheduler, as shells have it."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

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


def interrupt(number: int, frame: FrameType | None) -> None:
    """Every such signal is Ctrl-C."""
    raise KeyboardInterrupt


def process_began() -> float:
    """When this process was started, in seconds since 1970: before its interpreter was there. Without /proc: now."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.time()
    return time.time() - up + int(fields[19]) / os.sysconf("SC_CLK_TCK")
