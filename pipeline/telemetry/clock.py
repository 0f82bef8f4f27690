"""Where a stage's wall time goes. Knows nothing of tensors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class TimeCategory(StrEnum):
    """Where a stage's wall time goes: wall = busy + wait-in + wait-out + copy + sync + other."""

    BUSY = "busy"
    WAIT_IN = "wait_in"
    WAIT_OUT = "wait_out"
    COPY = "copy"
    SYNC = "sync"


class Clock:
    """Seconds spent by kind, since the clock was started. One thread measures; any may read, also amid a measurement.

    Every moment belongs to one kind at most, that of the innermost measurement, so nothing counts twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kind: TimeCategory | None = None
        self.listener: Callable[[TimeCategory, float, float], None] | None = None
        """Told of every stretch of time that has a kind: from when to when, by ``time.perf_counter``."""
        self.restart()

    def restart(self) -> None:
        """Begins anew, with nothing spent."""
        with self._lock:
            self._started = self._since = time.perf_counter()
            self.started_at = time.time()
            self._seconds = dict.fromkeys(TimeCategory, 0.0)
            self._launching = NO_LAUNCHING
            self._last_lap = TimeBreakdown(wall=0.0, seconds=dict.fromkeys(TimeCategory, 0.0))

    @contextmanager
    def measure(self, kind: TimeCategory) -> Iterator[None]:
        """Accounts for the block's time as ``kind``, but for what is measured inside it."""
        outer = self._switch(kind)
        try:
            yield
        finally:
            self._switch(outer)

    def read(self) -> TimeBreakdown:
        """The account since the clock was started."""
        with self._lock:
            now = self._account()
            return TimeBreakdown(now - self._started, dict(self._seconds), self._launching)

    def spent(self, kind: TimeCategory) -> float:
        """Seconds spent on a kind since the clock was started."""
        with self._lock:
            self._account()
            return self._seconds[kind]

    def credit(self, kind: TimeCategory, seconds: float) -> None:
        """Adds time that a GPU spent while its host waited for the next message: it counts as busy alone."""
        with self._lock:
            self._seconds[kind] += seconds
            excess = sum(self._seconds.values()) - (self._account() - self._started)
            for waiting in (TimeCategory.WAIT_IN, TimeCategory.WAIT_OUT, TimeCategory.COPY, TimeCategory.SYNC):
                taken = min(max(excess, 0.0), self._seconds[waiting])
                self._seconds[waiting] -= taken
                excess -= taken

    def launched(self, *, issue: float, kernels: float) -> None:
        """Notes of a step how many seconds the host took to issue it, and its kernels without a gap between them."""
        with self._lock:
            self._launching += Launching(steps=1, issue=issue, kernels=kernels)

    def _switch(self, kind: TimeCategory | None) -> TimeCategory | None:
        """From now on time is spent on ``kind``. Returns on what it was spent before."""
        with self._lock:
            self._account()
            before, self._kind = self._kind, kind
        return before

    def _account(self) -> float:
        """Accounts for the time until now, which it returns."""
        now = time.perf_counter()
        if self._kind is not None:
            self._seconds[self._kind] += now - self._since
            if self.listener is not None:
                self.listener(self._kind, self._since, now)
        self._since = now
        return now

    def lap(self) -> TimeBreakdown:
        """The account since the last lap."""
        now = self.read()
        since, self._last_lap = now - self._last_lap, now
        return since


@dataclass(frozen=True, kw_only=True)
class Launching:
    """A GPU's steps of which both are known: how long the host took to issue them, and the GPU to compute them.

    Attributes:
        steps: how many; none on a CPU, where the host computes.
        issue: seconds in which the host issued them, waiting apart.
        kernels: seconds of their kernels, one behind the other without a gap.
    """

    steps: int = 0
    issue: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: Launching) -> Launching:
        return Launching(
            steps=self.steps + other.steps, issue=self.issue + other.issue, kernels=self.kernels + other.kernels
        )

    def __sub__(self, earlier: Launching) -> Launching:
        return Launching(
            steps=self.steps - earlier.steps, issue=self.issue - earlier.issue, kernels=self.kernels - earlier.kernels
        )

    @property
    def issue_ms(self) -> float | None:
        """Milliseconds of the host for a step, in the mean; None where no step is known."""
        return 1000 * self.issue / self.steps if self.steps else None

    @property
    def kernel_ms(self) -> float | None:
        """Milliseconds of the GPU for a step, in the mean; None where no step is known."""
        return 1000 * self.kernels / self.steps if self.steps else None


NO_LAUNCHING = Launching()


@dataclass(frozen=True)
class TimeBreakdown:
    """A reading of a clock, or the difference of two."""

    wall: float
    seconds: dict[TimeCategory, float]
    launching: Launching = NO_LAUNCHING

    def __add__(self, other: TimeBreakdown) -> TimeBreakdown:
        seconds = {kind: spent + other.seconds[kind] for kind, spent in self.seconds.items()}
        return TimeBreakdown(self.wall + other.wall, seconds, self.launching + other.launching)

    def __sub__(self, earlier: TimeBreakdown) -> TimeBreakdown:
        seconds = {kind: spent - earlier.seconds[kind] for kind, spent in self.seconds.items()}
        return TimeBreakdown(self.wall - earlier.wall, seconds, self.launching - earlier.launching)

    @property
    def other(self) -> float:
        """Wall seconds that no kind claims."""
        return self.wall - sum(self.seconds.values())

    @property
    def utilisation(self) -> float:
        """Share of wall time in which the stage computed: busy / wall."""
        return self.share(TimeCategory.BUSY)

    def share(self, kind: TimeCategory) -> float:
        """Share of wall time that was spent on a kind."""
        return self.seconds[kind] / self.wall if self.wall > 0 else 0.0
