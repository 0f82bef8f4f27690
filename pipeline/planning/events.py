"""Simulated time: processes that share cores, let time pass, and wait for each other.

A process is a generator that asks for work, for time to pass, or for a counter to get so far. Who works at the same
time shares the cores evenly; SimPy's resources, which are held or waited for, cannot express that.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count

from pipeline.planning.parts import Cores


class Counter:
    """How far something has come. Processes wait for it to get somewhere."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.waiting: list[tuple[int, Process]] = []


@dataclass(frozen=True, slots=True)
class Work:
    """Of a shared core, so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Delay:
    """Time passes."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Until:
    """The counter has come to ``due``."""

    counter: Counter
    due: int


Request = Work | Delay | Until
Process = Generator[Request, None, None]


class Machine:
    """Runs processes in simulated time."""

    def __init__(self, cores: Cores) -> None:
        self.now = 0.0
        self._cores = cores
        self._order = count()  # of requests: what falls on one moment happens in the order it was asked for
        # Running processes all proceed at one speed, so each ends when the work done by any of them reaches a mark.
        self._done = 0.0
        self._running: list[tuple[float, int, Process]] = []
        self._sleeping: list[tuple[float, int, Process]] = []
        self._ready: deque[Process] = deque()

    def start(self, process: Process) -> None:
        self._ready.append(process)

    def raise_to(self, counter: Counter, value: int) -> None:
        """Sets a counter, which never falls, and wakes who waited for it."""
        counter.value = value
        self._ready.extend(process for due, process in counter.waiting if due <= value)
        counter.waiting = [(due, process) for due, process in counter.waiting if due > value]

    def run(self, is_over: Callable[[], bool]) -> None:
        while True:
            while self._ready:
                self._go_on(self._ready.popleft())
            if is_over():
                return
            speed = self._cores.speed(len(self._running)) if self._running else 0.0
            finished = self.now + (self._running[0][0] - self._done) / speed if self._running else math.inf
            woken = self._sleeping[0][0] if self._sleeping else math.inf
            assert min(finished, woken) < math.inf, "everyone waits for someone"
            if finished <= woken:
                self.now = finished
                self._done, _, process = heapq.heappop(self._running)
            else:
                self._done += (woken - self.now) * speed
                self.now, _, process = heapq.heappop(self._sleeping)
            self._ready.append(process)

    def _go_on(self, process: Process) -> None:
        """Runs a process up to its next request that takes time."""
        for request in process:
            match request:
                case Work(seconds) if seconds > 0:
                    heapq.heappush(self._running, (self._done + seconds, next(self._order), process))
                    return
                case Delay(seconds) if seconds > 0:
                    heapq.heappush(self._sleeping, (self.now + seconds, next(self._order), process))
                    return
                case Until(counter, due) if counter.value < due:
                    counter.waiting.append((due, process))
                    return
                case _:
                    continue
