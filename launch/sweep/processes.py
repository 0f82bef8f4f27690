"""Runs as processes of their own, one after another, or beside each other where there are devices for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.signals import OF_MANY
from pipeline.errors import RunError

_LOOK = 0.2  # seconds between two looks
_LAST_WORD = 15.0  # seconds that a run has to end when it is stopped at once


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is to be started.

    Attributes:
        name: for people.
        folder: its run folder.
        log: the file that takes what it prints, behind what is there.
        arguments: what follows `launch`.
        kind, devices: what it runs on, and how many of them it needs.
    """

    name: str
    folder: Path
    log: Path
    arguments: Sequence[str]
    kind: str
    devices: int


class Devices:
    """Devices by their kind, handed out to runs.

    Args:
        numbers: of each kind, by what a process is told to see of them.
    """

    def __init__(self, numbers: Mapping[str, Sequence[str]]) -> None:
        self._free = {kind: list(there) for kind, there in numbers.items()}

    def take(self, kind: str, count: int) -> list[str] | None:
        """So many devices; None where not so many are free."""
        free = self._free[kind]
        if count > len(free):
            return None
        self._free[kind] = free[count:]
        return free[:count]

    def give_back(self, kind: str, devices: Sequence[str]) -> None:
        self._free[kind] += devices


@dataclass(frozen=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    devices: list[str]


class Processes:
    """Starts jobs in their order as devices become free.

    Args:
        at_once: so many beside each other at most; None: as many as there are devices for.
        began, ended: told of every job; of the end with the exit status, negative the number of the signal that
            ended it.
        looked: told some times a second which jobs go on.
        stopping: told once, when those that go on are asked to stop.
        stopped: whether no more are to be started, and those that go on are to stop.
    """

    def __init__(
        self,
        devices: Devices,
        *,
        at_once: int | None,
        began: Callable[[Job], None],
        ended: Callable[[Job, int], None],
        looked: Callable[[Sequence[Job]], None],
        stopping: Callable[[], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._devices, self._at_once = devices, at_once
        self._began, self._ended, self._looked = began, ended, looked
        self._stopping, self._stopped = stopping, stopped
        self._running: list[_Running] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """Returns when all have ended, or those that went on when they were to stop.

        Raises:
            RunError: a process cannot be started; none goes on then.
        """
        waiting, told = list(jobs), False
        with self._none_left():
            while self._running or (waiting and not self._stopped()):
                while waiting and not self._stopped() and self._start(waiting[0]):
                    waiting.pop(0)
                if self._stopped() and not told:
                    told = True
                    self._stopping()
                    self._signal(OF_MANY)
                self._collect()
                self._looked([one.job for one in self._running])
                time.sleep(_LOOK if self._running else 0.0)

    def _start(self, job: Job) -> bool:
        """Starts a job where there is room for it."""
        if self._at_once is not None and len(self._running) >= self._at_once:
            return False
        devices = self._devices.take(job.kind, job.devices)
        if devices is None:
            return False
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if job.kind == "cuda" else {}
        try:
            with job.log.open("ab") as log:
                process = subprocess.Popen(  # noqa: S603 (this program itself)
                    [sys.executable, "-m", "launch", *job.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **seen},
                    process_group=0,  # a terminal's Ctrl-C is this process's to pass on
                )
        except OSError as error:
            raise RunError(f"{job.name}: cannot be started ({error.strerror}).") from error
        self._running.append(_Running(job, process, devices))
        self._began(job)
        return True

    def _collect(self) -> None:
        """Hears which have ended."""
        for one in list(self._running):
            status = one.process.poll()
            if status is not None:
                self._running.remove(one)
                self._devices.give_back(one.job.kind, one.devices)
                self._ended(one.job, status)

    def _signal(self, number: signal.Signals) -> None:
        for one in self._running:
            one.process.send_signal(number)

    @contextmanager
    def _none_left(self) -> Iterator[None]:
        """However the block ends, no process goes on behind it: a second signal stops a run at once."""
        try:
            yield
        finally:
            self._signal(OF_MANY)
            end = time.monotonic() + _LAST_WORD
            while self._running and time.monotonic() < end:
                self._collect()
                time.sleep(_LOOK / 4)
            self._signal(signal.SIGKILL)
            for one in self._running:
                one.process.wait()
