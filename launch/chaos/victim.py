"""A run in a process of its own, watched from outside: what it prints when, its processes, its checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import RunError

_LOOK = 0.05  # seconds between two looks


@dataclass(frozen=True)
class Line:
    """A line that a run printed, and when (``time.monotonic``)."""

    text: str
    at: float


@dataclass
class Victim:
    """`launch` with these arguments, in a session of its own, so that all its processes can be told from others.

    Args:
        run: its run folder.
        arguments: what follows `launch`.
    """

    run: Path
    arguments: Sequence[str]
    lines: list[Line] = field(default_factory=list)
    process: subprocess.Popen[str] = field(init=False)
    _starting: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Starts it. Whoever calls this calls ``end`` too, however it comes out."""
        # In a thread, as a signal that stops this program is heard in another one: it cannot come between the start of
        # the process and the note of it.
        self._starting = starting = threading.Thread(target=self._start, daemon=True)
        starting.start()
        starting.join()

    def _start(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 (this program itself)
            [sys.executable, "-m", "launch", *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None, "it is a pipe"
        for line in self.process.stdout:
            self.lines.append(Line(line.rstrip("\n"), time.monotonic()))

    def descendants(self) -> dict[int, str]:
        """Its living processes and their command lines: those of its session, and what they started elsewhere."""
        others: dict[int, str] = {}
        parents: dict[int, int] = {}
        ours: set[int] = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state, *fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended while we looked
                continue
            pid, parents[int(entry.name)] = int(entry.name), int(fields[0])
            if state != "Z" and pid != self.process.pid:
                others[pid] = command
                if int(fields[2]) == self.process.pid:
                    ours.add(pid)
        before = -1
        while len(ours) > before:
            before = len(ours)
            ours |= {pid for pid in others if parents[pid] in ours}
        return {pid: others[pid] for pid in ours}

    def named(self, kind: str) -> list[int]:
        """Its living processes in whose command line these words are."""
        return sorted(pid for pid, command in self.descendants().items() if kind in command)

    def wait_for(self, what: str, happened: Callable[[], bool], seconds: float, *, or_end: bool = False) -> bool:
        """Waits until something has happened. Returns False where the run has ended before.

        Args:
            or_end: its end is no error.

        Raises:
            RunError: it does not happen in so many seconds, or the run ends.
        """
        end = time.monotonic() + seconds
        while not happened():
            if self.process.poll() is not None:
                self._reader.join(1.0)
                if or_end or happened():
                    return happened()
                raise RunError(f"the run ended with {self.process.returncode} before {what}:\n{self.tail()}")
            if time.monotonic() > end:
                raise RunError(f"{what} took more than {seconds:g} s:\n{self.tail()}")
            time.sleep(_LOOK)
        return True

    def first(self, text: str, *, since: float) -> Line | None:
        """The first line from then on that holds a text."""
        return next((line for line in self.lines if line.at >= since and text in line.text), None)

    def tail(self) -> str:
        """The last lines, for messages."""
        return "\n".join(line.text for line in self.lines[-12:])

    def end(self) -> None:
        """Ends all its processes, if it was started."""
        if self._starting is None:
            return
        self._starting.join()
        for pid in [*self.descendants(), *([self.process.pid] if self.process.poll() is None else [])]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue  # it ended while we looked
        self.process.wait()
